"""Compares runs: what differs in their configs, then verdicts and effects side by side.

python -m experiments.compare RUN RUN...
"""

from pathlib import Path

from halfway import storage
from halfway.lab.commands import cli
from halfway.lab.config import config_file
from halfway.lab.config.user import UserError
from halfway.lab.report import comparison
from halfway.lab.report.comparison import Summary
from halfway.lab.runtime.runs import Run


def main(options: cli.Options) -> None:
    """Two or more working directories to one text; nothing is written."""
    if len(options.arguments) < 2:
        raise UserError("two or more runs are needed: the folders of finished runs")
    print(comparison.text([summarize(name) for name in options.arguments]))


def summarize(name: str) -> Summary:
    """Returns what is compared of a run.

    Args:
      name: its folder.

    Raises:
      UserError: if it holds no run, or one without verdicts.
    """
    path = Path(name)
    if not (path / "config.json").is_file():
        raise UserError(f"{name} holds no run (no config.json)")
    run = Run.open(path)
    try:
        verdicts = storage.read_json(path / "verdicts.json")
        stored = storage.read_json(path / "config.json")
        by_id = {verdict["id"]: verdict for verdict in verdicts}
    except storage.UNREADABLE as error:
        raise UserError(
            f"{name} has no verdicts that can be read: finish it by experiments.reproduce, or "
            f"rebuild them by experiments.decide --workdir={name}"
        ) from error
    settings = comparison.settings(stored, run.notes(), config_file.leaves(run.config))
    return Summary(name, settings, by_id)


def run() -> None:
    """Runs the command with the arguments of the process."""
    cli.launch(main, takes=(), positional=True)
