"""Compares runs: what differs in their configs, then verdicts and effects side by side.

The command is `halfway.lab.commands.compare`; `--help` prints what it takes.
"""

from halfway.lab.commands import call

if __name__ == "__main__":
    call("compare")
