"""From a config to verdicts: train, measure, decide, report. Each step reads what is on disk."""

import collections
import dataclasses
import functools
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import xarray as xr

from halfway import populations, sharding
from halfway.data import Split
from halfway.keys import named_key
from halfway.lab import studies
from halfway.lab.config.settings import RunConfig
from halfway.lab.config.user import LOG, UserError
from halfway.lab.measurements.context import Context
from halfway.lab.report import page, run_report, summary
from halfway.lab.runtime import devices, estimates, processes, tensorboard
from halfway.lab.runtime.progress import ProgressBar, doing
from halfway.lab.runtime.runs import Run
from halfway.lab.study import evidence, family, registration, wording
from halfway.lab.study.protocol import Study
from halfway.lab.study.records import Records, Request
from halfway.lab.study.verdict import Verdict
from halfway.populations import Condition

MANY_IMAGES = 20
"""Times n from which on a pool is so large that pairs drawn from it count as independent."""


def measure(run: Run, chosen: Sequence[Study], pool: Split, *, with_events: bool = False) -> None:
    """Trains and measures what the chosen studies need and the run does not hold yet.

    This includes hypotheses of earlier invocations: measurements of theirs that can no longer be
    read are made again.

    Args:
      run: the run that stores the results.
      chosen: the studies of this invocation.
      pool: the examples that halves are drawn from.
      with_events: whether TensorBoard's event files grow with each population that is trained.
    """
    studies_by_id = {study.id: study for study in (*_earlier(run), *chosen)}
    ids = studies.sort_ids(studies_by_id)
    asked = requests([studies_by_id[name] for name in ids], run.config)
    needed = _conditions(asked)
    missing = [request for request in asked if not run.has_measurement(request)]
    wanted = _conditions(missing)
    with doing("reading stored populations"):
        loaded = {condition: run.load_population(condition) for condition in wanted}
    in_memory = {
        condition: population for condition, population in loaded.items() if population is not None
    }
    untrained = [condition for condition in wanted if condition not in in_memory]
    if run.resumed:
        done = sum(condition in in_memory or condition not in loaded for condition in needed)
        LOG.info("resumed %d of %d populations", done, len(needed))
    del loaded  # populations leave the memory one by one
    seconds: dict[str, float] = run.notes()["seconds"]

    groups = ["training"] * len(untrained) + [request.measurement.name for request in missing]
    compiled = set()
    waiting = collections.Counter(each for request in missing for each in request.conditions)

    def compiles(program: Any) -> bool:
        """Returns whether a program is met for the first time."""
        is_new = program not in compiled
        compiled.add(program)
        return is_new

    with ProgressBar(len(groups), groups=groups) as progress:
        for condition in untrained:
            stop_if_asked()
            fresh = compiles(populations.program_of(condition))
            with progress.stage(f"train {label(condition)}", "training", seconds, compiles=fresh):
                in_memory[condition] = run.train(condition, pool, progress.within)
                if fresh:
                    devices.return_memory()
            if with_events:
                processes.shared(functools.partial(_write_events, run, in_memory[condition]))
            run.note(seconds=seconds)
        for request in missing:
            stop_if_asked()
            what = f"{request.measurement.name} {label(request.conditions[0])}"
            fresh = compiles(
                (
                    request.measurement.name,
                    *(populations.program_of(each, trains=False) for each in request.conditions),
                )
            )
            with progress.stage(what, request.measurement.name, seconds, compiles=fresh):
                dataset = measured(
                    request, [in_memory[each] for each in request.conditions], pool, run.config
                )
                run.save_measurement(request, dataset)
                if fresh:
                    devices.return_memory()
            waiting.subtract(request.conditions)
            for condition in {each for each in request.conditions if not waiting[each]}:
                del in_memory[condition]  # it is on disk, and nothing here needs it any more
            run.note(seconds=seconds)
            if processes.count() == 1:  # several would have to do it together
                devices.forget_programs()
    run.export(asked)
    run.note(hypotheses=ids)


def measured(
    request: Request, parts: Sequence[populations.Population], pool: Split, config: RunConfig
) -> xr.Dataset:
    """Returns what a request asks for, measured on its populations.

    Args:
      request: the measurement and its conditions.
      parts: the population of each of these conditions.
      pool: the examples that halves are drawn from.
      config: the settings of the run.
    """
    key = named_key(jax.random.key(config.seed), "measurement", request.measurement.name)
    return request.measurement.measure(Context(key, tuple(parts), pool, config))


def conditions(chosen: Sequence[Study], config: RunConfig, pool: Split) -> list[Condition]:
    """Returns the conditions that studies need, checked against the pool.

    Args:
      chosen: the studies.
      config: the settings of the run.
      pool: the examples that halves are drawn from.

    Raises:
      UserError: if a study cannot be run on this config, or the halves do not fit into the pool.
    """
    try:
        wanted = _conditions(requests(chosen, config))
    except ValueError as error:
        raise UserError(str(error)) from error
    check_conditions(wanted, pool)
    return wanted


def check_conditions(wanted: Iterable[Condition], pool: Split) -> None:
    """Checks that populations can be trained on a pool, without training any.

    Args:
      wanted: the conditions of the populations.
      pool: the examples that halves are drawn from.

    Raises:
      UserError: if a population cannot be trained on it.
    """
    for condition in wanted:
        try:
            populations.validate(condition, pool)
        except (ValueError, TypeError) as error:
            raise UserError(str(error)) from error


def check_tensorboard(wanted: bool) -> None:
    """Checks before any training that event files can be written.

    Args:
      wanted: whether any will be written; nothing is checked otherwise.

    Raises:
      UserError: if the library that writes them is not installed.
    """
    if wanted:
        tensorboard.check()


def write_events(run: Run, chosen: Sequence[Study], wanted: bool = True) -> None:
    """Writes TensorBoard event files of the stored populations that hypotheses need.

    Args:
      run: the run that stores the populations.
      chosen: the studies of the hypotheses.
      wanted: whether to write any files.
    """
    if wanted:
        processes.shared(lambda: _write_all_events(run, chosen))


def _write_all_events(run: Run, chosen: Sequence[Study]) -> None:
    for condition in _conditions(requests(chosen, run.config)):
        if not _events_folder(run, condition).is_dir():  # they are written whole or not at all
            population = run.load_population(condition)
            if population is not None:
                _write_events(run, population)


def _write_events(run: Run, population: populations.Population) -> None:
    with run.writing():
        tensorboard.write(_events_folder(run, population.condition), population)


def _events_folder(run: Run, condition: Condition) -> Path:
    """Returns the folder of a condition's events, whose name has letters, digits, _, . and - only.

    TensorBoard shows it as the name of a run, and people filter by it.
    """
    words = label(condition).replace("ρ=", "rho").replace("ω=", "overlap").replace("×", "x")
    name = re.sub(r"[^A-Za-z0-9.-]+", "_", words.replace("÷", "over"))
    return run.path / "tensorboard" / f"{name}_{condition.id}"


def plan(
    path: Path, config: RunConfig, chosen: Sequence[Study], pool: Split, layout: sharding.Layout
) -> str:
    """Returns a text of what a run would train and measure; nothing is trained or written.

    Args:
      path: the folder that results would go to.
      config: the settings of the run.
      chosen: the studies.
      pool: the examples that halves are drawn from.
      layout: the layout that populations would train on.

    Raises:
      UserError: if the folder holds a run that cannot be read.
    """
    asked = requests(chosen, config)
    missing, stored = _conditions(asked), []
    if (path / "config.json").is_file():
        run = Run.open(path)
        stored = [condition for condition in missing if run.has_population(condition)]
        asked = [request for request in asked if not run.has_measurement(request)]
        missing = [condition for condition in _conditions(asked) if condition not in stored]
    return estimates.in_words(
        estimates.estimate(missing, pool, layout),
        layout,
        num_stored=len(stored),
        measurements=collections.Counter(request.measurement.name for request in asked),
    )


def stop_if_asked() -> None:
    """Ends the run between two stages if it was asked to end; all processes agree.

    Raises:
      processes.Terminated: if the run was asked to end.
    """
    if processes.is_ending():
        raise processes.Terminated


def _earlier(run: Run) -> list[Study]:
    """Returns the studies that have been run in the folder of a run."""
    known, names = studies.available(), run.notes()["hypotheses"]
    for name in names:
        if name not in known:
            raise UserError(f"this version has no study {name}, which {run.path} was run with")
    return [known[name] for name in names]


def requests(chosen: Sequence[Study], config: RunConfig) -> list[Request]:
    """Returns all that studies need measured, each once.

    Args:
      chosen: the studies.
      config: the settings of the run.
    """
    by_id = {request.id: request for study in chosen for request in study.needs(config)}
    return list(by_id.values())


def _conditions(asked: Sequence[Request]) -> list[Condition]:
    return list(dict.fromkeys(condition for request in asked for condition in request.conditions))


def label(condition: Condition) -> str:
    """Returns a condition in a few words, for progress and messages.

    Args:
      condition: the condition.
    """
    words = [
        condition.architecture,
        "permuted" if condition.permuted else f"ρ={condition.noise_rate:g}",
    ]
    words += [f"ω={condition.overlap:g}"] if condition.overlap else []
    words += ["one start"] if condition.shared_start else []
    return " ".join(words)


class Decided(NamedTuple):
    """What a run says: its studies in the order of the report, their records and verdicts."""

    studies: list[Study]
    records: Records
    verdicts: list[Verdict]


def decide(run: Run) -> Decided:
    """Returns the verdicts of all studies run so far, decided by the code as it is.

    Args:
      run: a run that has records.

    Raises:
      UserError: if there are no records, or this version lacks a study that was run.
    """
    chosen = _earlier(run)
    if not chosen:
        raise UserError(
            f"{run.path} holds no hypothesis that was run to its end: run reproduce again"
        )
    records = run.records(requests(chosen, run.config))
    try:
        outcomes = [(study, study.decide(records)) for study in chosen]
    except LookupError as error:
        raise UserError(
            f"the records of {run.path} are incomplete ({error}): run reproduce again"
        ) from error
    verdicts = family.conclude(
        outcomes,
        family_size=studies.family_size(),
        evidence=evidence.kind(run.config),
        by_study={
            study.id: evidence.kind(run.config, study)
            for study in chosen
            if study.kind != "description"
        },
    )
    verdicts = [
        verdict
        if study.kind == "description"
        else dataclasses.replace(
            verdict,
            rule=registration.described_rule(study),
            is_locked=registration.is_locked(study),
        )
        for study, verdict in zip(chosen, verdicts, strict=True)
    ]
    return Decided(chosen, records, verdicts)


def conclude(run: Run) -> list[Verdict]:
    """Returns the verdicts of all hypotheses run so far, and writes them with figures and report.

    Args:
      run: a run that has records.

    Raises:
      UserError: if there are no records, or this version lacks a study that was run.
    """
    started = time.monotonic()
    chosen, records, verdicts = decide(run)
    num_conditions = len(_conditions(requests(chosen, run.config)))
    figures = {
        # Where a condition has no pair left, there is nothing to draw.
        study.id: study.figures(records, verdict) if verdict.num_pairs else ()
        for study, verdict in zip(chosen, verdicts, strict=True)
    }
    explanations = {
        study.id: study.explain(verdict) for study, verdict in zip(chosen, verdicts, strict=True)
    }
    overview = summary.overview(records)
    warnings = [*_settings_warning(run), *overview.warnings]
    for warning in warnings:
        LOG.warning("%s", warning)
    seconds = run.notes()["seconds"] | {"verdicts, figures, report": time.monotonic() - started}
    report = run_report.page(
        verdicts=verdicts,
        figures=figures,
        explanations=explanations,
        listed=studies.listed(),
        condition_tables=overview.tables,
        condition_figures=overview.figures,
        walks=overview.walks,
        run=run_info(run, seconds, warnings, num_conditions),
    )
    run.check_exports(requests(chosen, run.config))
    run.save_verdicts([verdict.to_json() for verdict in verdicts])
    page.write(run.path, report, resumes=True)
    return verdicts


def _settings_warning(run: Run) -> list[str]:
    changed = evidence.changed(run.config)
    if not changed or evidence.kind(run.config) != "exploratory":
        return []
    return [
        f"The settings differ from those of every config that is shipped ({', '.join(changed)}): "
        "they were chosen for this run, so that its verdicts are exploratory."
    ]


def run_info(
    run: Run, seconds: Mapping[str, float], warnings: Sequence[str], num_conditions: int
) -> run_report.RunInfo:
    """Returns the facts about a run that its page shows.

    Args:
      run: the run as it is on disk.
      seconds: run time in seconds by stage.
      warnings: sentences, one for each warning.
      num_conditions: the number of conditions that were trained.
    """
    config, notes = run.config, run.notes()
    noted = notes["environment"]
    left_out = [
        f"{name} is not for this architecture: {reason}."
        for name, reason in notes["unsuitable"].items()
    ]
    return run_report.RunInfo(
        command=noted.get("command", ""),
        config=config.to_dict(),
        seed=config.seed,
        versions=noted.get("versions", {}),
        commit=noted.get("commit"),
        devices=noted.get("devices", "unknown"),
        num_devices=run.num_devices,
        dataset=config.dataset,
        data_version=noted.get("data_version", ""),
        data_checksum=run.data_checksum,
        num_pairs=config.num_pairs,
        architectures=tuple(config.architectures),
        num_conditions=num_conditions,
        started=noted.get("started", ""),
        seconds=seconds,
        warnings=[*warnings, *left_out],
        evidence=evidence.kind(config),
        layout=noted.get("layout", ""),
        compute_dtype=config.training.compute_dtype,
        given=_given(noted.get("data_size"), config),
        shipped=registration.described_config(evidence.nearest(config)),
        changed=evidence.changed(config),
    )


def _given(data_size: Any, config: RunConfig) -> int | None:
    """Returns N where pairs are independent only given the N images of the pool; else None."""
    if not isinstance(data_size, Mapping):  # of a run of before version 0.3.0
        return None
    number = data_size["train"] + (data_size["test"] if config.subset == "all" else 0)
    return number if number < MANY_IMAGES * config.num_examples else None


def ending(run: Run, verdicts: Sequence[Verdict]) -> str:
    """Returns the text that a terminal shows at the end: map, verdicts, path of the report.

    Args:
      run: the run that the verdicts are of.
      verdicts: the verdicts of all its hypotheses.
    """
    return f"{wording.terminal_map(verdicts, studies.listed())}\n\n{run.path / 'report.html'}"


def finish(run: Run) -> None:
    """Decides hypotheses, writes the report, and prints the map, the verdicts and its path.

    Args:
      run: a run that has records.
    """
    with doing("deciding hypotheses, drawing figures, writing the report"):
        processes.shared(lambda: print(ending(run, conclude(run)), flush=True))
