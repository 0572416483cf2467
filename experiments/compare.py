"""Compares runs: what differs in their configs, then verdicts and effects side by side.

The command is `halfway.lab.commands.compare`; `--help` prints what it takes.
"""

from halfway.lab.commands.compare import run

if __name__ == "__main__":
    run()
