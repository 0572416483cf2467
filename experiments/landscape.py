"""Draws the landscapes of a trained population, or of anybody's own model, with error bars.

The command is `halfway.lab.commands.landscape`; `--help` prints what it takes.
"""

from halfway.lab.commands import call

if __name__ == "__main__":
    call("landscape")
