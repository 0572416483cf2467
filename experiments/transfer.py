"""Attacks models through each other: any JAX classifiers, with controls and intervals.

The command is `halfway.lab.commands.transfer`; `--help` prints what it takes.
"""

from halfway.lab.commands import call

if __name__ == "__main__":
    call("transfer")
