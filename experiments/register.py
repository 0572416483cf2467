"""Writes down what decides before a data set is opened: rules.lock.

The command is `halfway.lab.commands.register`; `--help` prints what it takes.
"""

from halfway.lab.commands import call

if __name__ == "__main__":
    call("register")
