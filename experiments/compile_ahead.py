"""Compile every program of every study, attack and landscape for TPUs that need not be there.

The command is `halfway.lab.commands.compile_ahead`; `--help` prints what it takes.
"""

from halfway.lab.commands import call

if __name__ == "__main__":
    call("compile_ahead")
