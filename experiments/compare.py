"""Compares runs: what differs in their configs, then verdicts and effects side by side.

python -m experiments.compare RUN RUN...
"""

from pathlib import Path

from experiments import cli, comparison, config_file, files
from experiments.comparison import Summary
from experiments.errors import UserError
from experiments.runs import Run


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
        verdicts = files.read_json(path / "verdicts.json")
        stored = files.read_json(path / "config.json")
        by_id = {verdict["id"]: verdict for verdict in verdicts}
    except files.UNREADABLE as error:
        raise UserError(
            f"{name} has no verdicts that can be read: finish it by experiments.reproduce, or "
            f"rebuild them by experiments.decide --workdir={name}"
        ) from error
    settings = comparison.settings(stored, run.notes(), config_file.leaves(run.config))
    return Summary(name, settings, by_id)


if __name__ == "__main__":
    cli.launch(main, takes=(), positional=True)
