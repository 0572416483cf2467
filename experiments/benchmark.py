"""Times what is done side by side with what people use today, in the same run on the same threads.

The command is `halfway.lab.commands.benchmark`; `--help` prints what it takes.
"""

from halfway.lab.commands import call

if __name__ == "__main__":
    call("benchmark")
