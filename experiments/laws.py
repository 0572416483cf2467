"""Checks the laws of the framework and draws them: predicted on one set, measured on another.

The command is `halfway.lab.commands.laws`; `--help` prints what it takes.
"""

from halfway.lab.commands import call

if __name__ == "__main__":
    call("laws")
