"""Rebuilds verdicts, figures and report of a finished run from its records, without training.

The command is `halfway.lab.commands.decide`; `--help` prints what it takes.
"""

from halfway.lab.commands import call

if __name__ == "__main__":
    call("decide")
