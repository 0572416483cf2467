"""Compare runs: what differs in their configs, then verdicts and effects side by side.

What it takes is in `halfway.lab.flags.compare`.
"""

from pathlib import Path

from halfway.lab import studies
from halfway.lab.config import settings, user
from halfway.lab.config.user import UserError
from halfway.lab.entry import shared
from halfway.lab.flags.compare import FLAGS
from halfway.lab.report import comparison
from halfway.lab.report.comparison import Summary
from halfway.lab.runtime.runs import Run


def main() -> None:
    """Prints two or more working directories side by side; nothing is written."""
    names = shared.arguments(FLAGS)
    print(comparison.text([summarize(name) for name in names], studies.listed()))


def summarize(name: str) -> Summary:
    """Returns the summary of a run that is compared.

    Args:
      name: the folder of the run.

    Raises:
      UserError: if the folder holds no run, or a run without verdicts.
    """
    path = Path(name)
    user.check_folder(name, path)
    if not (path / "config.json").is_file():
        raise UserError(f"{name} holds no run (no config.json)")
    run = Run.open(path)
    by_id = {verdict["id"]: verdict for verdict in run.verdicts()}
    stored = run.identity | {"num_devices": run.num_devices}
    different = comparison.settings(stored, run.notes(), settings.leaves(run.config))
    return Summary(name, different, by_id)
