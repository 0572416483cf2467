"""Publishes a finished run as data, and makes the documents from all published results.

The command is `halfway.lab.commands.publish`; `--help` prints what it takes.
"""

from halfway.lab.commands import call

if __name__ == "__main__":
    call("publish")
