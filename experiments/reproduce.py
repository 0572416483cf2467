"""Trains populations of pairs, measures where they meet, decides hypotheses, writes a report.

The command is `halfway.lab.commands.reproduce`; `--help` prints what it takes.
"""

from halfway.lab.commands import call

if __name__ == "__main__":
    call("reproduce")
