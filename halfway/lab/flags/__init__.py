"""What each command takes: a module a command, whose docstring is the help.

They import nothing large, so that a wrong flag is said at once.
"""
