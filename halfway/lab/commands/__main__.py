"""The console script `halfway`: `halfway COMMAND ...` is `python -m experiments.COMMAND ...`."""

import difflib
import sys

from halfway.lab.runtime import start

COMMANDS = {
    "reproduce": "train, measure, decide hypotheses, write a report",
    "decide": "verdicts and report of a finished run again, without training",
    "register": "write down what decides before a data set is opened: rules.lock",
    "publish": "a finished run as data, and documents made from all results",
    "sweep": "many settings of a config, one table",
    "compare": "two or more runs side by side",
    "evaluate": "how robust a model of your own is, at several budgets",
    "transfer": "attack models of your own through each other",
    "landscape": "draw the landscapes of a run, or of your own model",
    "laws": "check the laws of the framework and draw them",
    "benchmark": "time the library side by side with what people use today",
    "compile_ahead": "compile every program for TPUs that need not be there",
    "prepare_data": "prepare a data set from its original files",
}


def main() -> None:
    """Runs the command that the first argument names."""
    start.open_streams()
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "-help", "--help", "help"):
        start.finish(lambda: print(_listed()))
        return
    name = arguments[0]
    if name not in COMMANDS:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(COMMANDS)}"
        print(f"error: unknown command {name!r}: {hint}", file=sys.stderr)
        sys.exit(start.MISTAKE)
    sys.argv = [f"halfway {name}", *arguments[1:]]
    start.call(name)


def _listed() -> str:
    """Returns the text that lists the commands."""
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name.ljust(width)}{words}" for name, words in COMMANDS.items()]
    return "\n".join(["halfway COMMAND --help says what a command takes:", "", *lines])


if __name__ == "__main__":
    main()
