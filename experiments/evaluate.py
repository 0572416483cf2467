"""Evaluates how robust a model is: accuracy under attack at several budgets, with intervals.

The command is `halfway.lab.commands.evaluate`; `--help` prints what it takes.
"""

from halfway.lab.commands import call

if __name__ == "__main__":
    call("evaluate")
