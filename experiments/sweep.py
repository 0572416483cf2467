"""Runs many settings of a config, each in a folder of its own, and puts them into one table.

The command is `halfway.lab.commands.sweep`; `--help` prints what it takes.
"""

from halfway.lab.commands import call

if __name__ == "__main__":
    call("sweep")
