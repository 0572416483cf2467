"""Compare runs: what differs in their configs, then verdicts and effects side by side.

Example: halfway compare runs/digits runs/mine
"""

from pathlib import Path

from absl import flags

from halfway import storage
from halfway.lab import studies
from halfway.lab.config import settings
from halfway.lab.config.user import UserError
from halfway.lab.entry import launch, shared
from halfway.lab.report import comparison
from halfway.lab.report.comparison import Summary
from halfway.lab.runtime.runs import Run

FLAGS = flags.FlagValues()


def main() -> None:
    """Prints two or more working directories side by side; nothing is written."""
    names = shared.arguments(FLAGS)
    if len(names) < 2:
        raise UserError("two or more runs are needed: the folders of finished runs")
    print(comparison.text([summarize(name) for name in names], studies.listed()))


def summarize(name: str) -> Summary:
    """Returns the summary of a run that is compared.

    Args:
      name: the folder of the run.

    Raises:
      UserError: if the folder holds no run, or a run without verdicts.
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
            f"{name} has no verdicts that can be read: finish it by `halfway reproduce`, or "
            f"rebuild them by `halfway decide --workdir={name}`"
        ) from error
    different = comparison.settings(stored, run.notes(), settings.leaves(run.config))
    return Summary(name, different, by_id)


def run() -> None:
    """Runs the command with the arguments of the process."""
    launch.run(main, FLAGS, positional=True)
