"""Rebuilds verdicts, figures and report of a finished run from its records, without training.

The command is `halfway.lab.commands.decide`; `--help` prints what it takes.
"""

from halfway.lab.commands.decide import run

if __name__ == "__main__":
    run()
