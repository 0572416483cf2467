"""Write down what decides: digests of rules and configs, and numbers that are fitted once.

What it takes is in `halfway.lab.flags.register`.
"""

import datetime
import importlib.metadata
from pathlib import Path
from typing import Any

from halfway import storage
from halfway.lab import studies
from halfway.lab.config.user import UserError
from halfway.lab.flags.register import WORKDIR
from halfway.lab.runtime import pipeline
from halfway.lab.runtime.runs import Run
from halfway.lab.studies.t3 import law
from halfway.lab.studies.t12 import lines
from halfway.lab.study import evidence, registration


def main() -> None:
    """Writes the lock and says what has changed in it.

    Raises:
      UserError: if lines are to be fitted that the lock has already.
    """
    fitted = fit(Path(WORKDIR.value)) if WORKDIR.value else {}
    today = datetime.date.today().isoformat()
    known = studies.available().values()
    before = registration.read() if registration.path().is_file() else {}
    if fitted.keys() & before.get("fitted", {}).keys():
        raise UserError(
            f"{registration.path()} has lines of {' and '.join(fitted)}: they are fitted once; "
            "for a new version of these rules take them out of the lock first"
        )
    after = registration.updated(known, fitted, today)
    for group in ("rules", "configs"):
        for name, entry in after[group].items():
            old = before.get(group, {}).get(name, {})
            if old.get("digest") != entry["digest"]:
                print(f"{name}: version {entry['version']}")
    for name in fitted:
        print(f"{name}: fitted")
    storage.write_json(registration.path(), after)
    print(registration.path())


def fit(path: Path) -> dict[str, Any]:
    """Returns the lines of T3 and T12 with what they were fitted on, by id.

    Args:
      path: the folder of a run of digits with the shipped settings, seed and number of pairs.

    Raises:
      UserError: if the run is another, or has not measured the grid.
    """
    run = Run.open(path)
    shipped = "digits"
    if evidence.changed(run.config) or evidence.nearest(run.config) != shipped:
        raise UserError(
            f"{path} is no run of the shipped config {shipped!r}, where lines are fitted"
        )
    chosen = [studies.available()[name] for name in ("T3", "T12")]
    asked = pipeline.requests(chosen, run.config)
    try:
        records = run.records(asked)
        of_law = {
            name: {"transform": line.transform, "slopes": list(line.slopes)}
            for name, line in law.fit(law.read(records)).items()
        }
        of_factors = {k: list(v) for k, v in lines.fit(lines.read(records)).items()}
    except LookupError as error:
        raise UserError(f"{path} has not measured T3 and T12 ({error}): run reproduce") from error
    facts = {
        "dataset": run.config.dataset,
        "seed": run.config.seed,
        "num_pairs": run.config.num_pairs,
        "measurements": run.measurements_digest(asked),
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "numpy")},
    }
    return {"T3": facts | {"lines": of_law}, "T12": facts | {"lines": of_factors}}
