"""What is committed of a run: verdicts with all parts, the law of transfer, tables, provenance."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from halfway import stats, storage
from halfway.lab import studies
from halfway.lab.config import config_file
from halfway.lab.config.settings import RunConfig
from halfway.lab.config.user import UserError
from halfway.lab.measurements import learning
from halfway.lab.measurements.learning import LEARNING
from halfway.lab.runtime import pipeline
from halfway.lab.runtime.runs import Run
from halfway.lab.studies.t3 import study as t3
from halfway.lab.study import evidence, registration, rules
from halfway.lab.study.conditions import condition
from halfway.lab.study.records import Records
from halfway.lab.study.verdict import Headline, PartResult, Verdict

RESULTS_FOLDER = "results"
"""Of the repository, where results are committed."""
MOST_BYTES = 200_000
_DIGITS = 5
"""Significant digits of every number: more than any interval leaves certain."""

Triple = tuple[float, float, float]
"""An estimate with the ends of its 95 % interval."""


@dataclasses.dataclass(frozen=True)
class Result:
    """A run as it is published.

    Attributes:
      name: of its file; the data set, with "shuffled" and the seed where these are not the shipped.
      dataset, seed, num_pairs: of the config; `shuffled`: whether labels were permuted.
      evidence: the kind that the run is; `given`: N where the pool is so small that what is said
        is said given its N images.
      config: the shipped config in words, with its digest and whether it is that of the lock.
      data: version and checksum; `versions`: package to version; `devices`, `started`: in words.
      seconds: of run time.
      verdicts: of all studies that were run.
      law: of T3, None where it was not run.
      meeting: M_θ in error at the end, for each architecture by noise rate as text.
      tables: columns and rows of text of studies' figures, by name of the figure.
    """

    name: str
    dataset: str
    seed: int
    num_pairs: int
    shuffled: bool
    evidence: str
    given: int | None
    config: str
    data: dict[str, str]
    versions: dict[str, str]
    devices: str
    started: str
    seconds: float
    verdicts: list[Verdict]
    law: t3.Points | None
    meeting: dict[str, dict[str, Triple]]
    tables: dict[str, dict[str, Any]]

    @property
    def decides(self) -> bool:
        """Whether anything was decided, and not described alone."""
        return any(verdict.kind != "description" for verdict in self.verdicts)

    def verdict(self, study_id: str) -> Verdict | None:
        """Returns the verdict of a study; None where it was not run.

        Args:
          study_id: its id.
        """
        return next((verdict for verdict in self.verdicts if verdict.id == study_id), None)


def of_run(run: Run, *, exploratory: bool = False) -> Result:
    """Returns what is published of a run, decided by the code as it is.

    Args:
      run: a run that has records.
      exploratory: whether a run that decides nothing is published too, marked as what it is.

    Raises:
      UserError: if a rule or the config is not that of the lock; or if the run is neither
        confirmatory nor a replication and `exploratory` is not set.
    """
    decided = pipeline.decide(run)
    others = [verdict.id for verdict in decided.verdicts if verdict.is_locked is False]
    name = evidence.nearest(run.config)
    if others or not registration.is_config_locked(name):
        what = f"the rule of {', '.join(others)}" if others else f"the config {name}"
        raise UserError(f"{what} is not that of the lock: nothing is published that was changed")
    kind = evidence.kind(run.config)
    if kind in ("exploratory", "none") and not exploratory:
        raise UserError(
            f"evidence of {run.path} is {_described(run, kind)}: --exploratory publishes it, "
            "marked as such"
        )
    info = pipeline.run_info(run, run.notes()["seconds"], (), 0)
    tables = {}
    for study, verdict in zip(decided.studies, decided.verdicts, strict=True):
        for figure in study.figures(decided.records, verdict) if verdict.num_pairs else ():
            if figure.table is not None and study.id not in _TABLES_LEFT_OUT:
                tables[figure.name] = {
                    "columns": list(figure.table.columns),
                    "rows": [list(row) for row in figure.table.rows],
                }
    return Result(
        name=_name(run),
        dataset=run.config.dataset,
        seed=run.config.seed,
        num_pairs=run.config.num_pairs,
        shuffled=run.config.shuffled_labels,
        evidence=kind,
        given=info.given,
        config=info.shipped,
        data={"version": info.data_version, "checksum": run.data_checksum},
        versions=dict(info.versions),
        devices=f"{info.num_devices} × {info.devices}",
        started=info.started,
        seconds=sum(info.seconds.values()),
        verdicts=decided.verdicts,
        law=_law(decided.records, decided.verdicts),
        meeting=_meeting(decided.records),
        tables=tables,
    )


_TABLES_LEFT_OUT = ("T3", "T11")
"""Studies whose tables repeat what is published of them as numbers."""


def _described(run: Run, kind: str) -> str:
    """Returns the kind of evidence of a run, with the fields that make its settings others."""
    changed = ", ".join(evidence.changed(run.config))
    return f"{kind} (changed: {changed})" if changed else kind


def _name(run: Run) -> str:
    """Returns the name of a result: two runs that differ in what decides never share it."""
    shipped = config_file.load(evidence.nearest(run.config)).config
    parts = [run.config.dataset.replace("/", "-").replace(":", "-")]
    parts += [] if _decides(shipped) else [evidence.nearest(run.config)]
    parts += ["shuffled"] if run.config.shuffled_labels else []
    parts += [f"seed{run.config.seed}"] if run.config.seed != shipped.seed else []
    parts += [f"pairs{run.config.num_pairs}"] if run.config.num_pairs != shipped.num_pairs else []
    return "-".join(parts)


def _decides(config: RunConfig) -> bool:
    """Returns whether a shipped config has a study that decides, and not descriptions alone."""
    return any(study.kind != "description" for study in studies.choose(config.hypotheses))


def _law(records: Records, verdicts: Sequence[Verdict]) -> t3.Points | None:
    verdict = next((verdict for verdict in verdicts if verdict.id == "T3"), None)
    return t3.points(records) if verdict is not None and verdict.num_pairs else None


def _meeting(records: Records) -> dict[str, dict[str, Triple]]:
    """Returns M_θ in error at the end, wherever training on a noise rate was measured."""
    config, rates_by_model = records.config, {}
    for architecture in config.architectures:
        listed = {
            f"{rate:g}": condition(config, architecture, noise_rate=rate)
            for rate in config.noise_rates
        }
        rates_by_model[architecture] = {
            rate: rules.triple(
                stats.fieller(*learning.meeting_terms(records.get(LEARNING, trained)))
            )
            for rate, trained in listed.items()
            if records.has(LEARNING, trained)
        }
    return rates_by_model


def write(result: Result, folder: Path) -> Path:
    """Returns the file of a result after writing it.

    Args:
      result: what is published.
      folder: where results lie, made if it is missing.

    Raises:
      UserError: if it is larger than what is committed.
    """
    plain = _encoded(dataclasses.asdict(result))
    plain["law"] = None if result.law is None else _encoded(result.law._asdict())
    path = folder / f"{result.name}.json"
    size = len(json.dumps(plain, indent=2))  # without the digest
    if size > MOST_BYTES:
        raise UserError(f"{path} would have {size:,} bytes: at most {MOST_BYTES:,} are committed")
    folder.mkdir(parents=True, exist_ok=True)
    storage.write_sealed_json(path, plain)
    return path


def _encoded(value: Any) -> Any:
    """Returns plain data for JSON: rounded numbers, and those that are not finite as text."""
    if isinstance(value, Mapping):
        return {name: _encoded(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_encoded(item) for item in value]
    if isinstance(value, np.generic | np.ndarray):
        return _encoded(value.tolist())
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else str(value)
    return value


_NOT_FINITE = ("nan", "inf", "-inf")


def _decoded(value: Any) -> Any:
    """Returns what `_encoded` was given, with tuples for lists of numbers."""
    if isinstance(value, Mapping):
        return {name: _decoded(item) for name, item in value.items()}
    if isinstance(value, list):
        items = [_decoded(item) for item in value]
        are_numbers = items and all(isinstance(item, int | float) for item in items)
        return tuple(map(float, items)) if are_numbers else items
    return float(value) if value in _NOT_FINITE else value


def read(path: Path) -> Result:
    """Returns a published result.

    Results that were committed before they carried a digest have that of git alone.

    Args:
      path: its file.

    Raises:
      UserError: if the file is no result, or not what was written.
    """
    try:
        try:
            stored = storage.read_sealed_json(path)
        except storage.UnsealedError:
            stored = storage.read_json(path)
        if stored["name"] != path.stem:
            raise ValueError(f"it is the result {stored['name']}")
        plain = _decoded(stored)
        plain["verdicts"] = [_verdict(verdict) for verdict in plain["verdicts"]]
        if law := plain["law"]:
            arrays = {name: np.array(law[name]) for name in ("agreement", "predicted", "measured")}
            plain["law"] = t3.Points(**{**law, **arrays})
        return Result(**plain)
    except (*storage.UNREADABLE, AttributeError) as error:
        raise UserError(f"{path} is no published result ({error})") from error


def _verdict(plain: Mapping[str, Any]) -> Verdict:
    parts = tuple(PartResult(**part) for part in plain["parts"])
    headlines = tuple(Headline(**headline) for headline in plain["headlines"])
    warnings = tuple(plain["warnings"])
    return Verdict(**{**plain, "parts": parts, "headlines": headlines, "warnings": warnings})


DATASETS = {
    "digits": "digits",
    "mnist1d": "MNIST-1D",
    "mnist": "MNIST",
    "cifar10_jpeg": "CIFAR-10 (JPEG)",
}
"""Data sets as documents name them, and in their order; others follow by name."""


def read_all(folder: Path) -> list[Result]:
    """Returns all published results: shipped ones first, data sets in the order of the documents.

    Args:
      folder: where results lie.

    Raises:
      UserError: if a file is no result.
    """
    results = [read(path) for path in sorted(folder.glob("*.json"))]

    def place(result: Result) -> tuple[Any, ...]:
        names = [*DATASETS, result.dataset]
        known = names.index(result.dataset)
        return result.shuffled, len(result.name.split("-")) > 1, known, result.name

    return sorted(results, key=place)


def shipped(results: Sequence[Result]) -> list[Result]:
    """Returns the results of shipped seeds, numbers of pairs and labels: one a data set.

    Args:
      results: all that are published.
    """
    return [result for result in results if result.name == result.dataset]
