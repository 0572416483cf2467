"""From a config to verdicts: train, measure, decide, report. Each step reads what is on disk."""

import collections
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import jax

from halfway import populations, sharding, storage
from halfway.data import Split
from halfway.lab import studies
from halfway.lab.config.settings import RunConfig
from halfway.lab.config.user import LOG, UserError
from halfway.lab.report import report, summary
from halfway.lab.runtime import devices, estimates, processes, tensorboard
from halfway.lab.runtime.progress import Progress
from halfway.lab.runtime.runs import Run
from halfway.lab.study import evidence, family, wording
from halfway.lab.study.protocol import Request, Study, Verdict
from halfway.populations import Condition


def measure(run: Run, chosen: Sequence[Study], pool: Split) -> None:
    """Trains and measures what the chosen studies need and the run does not hold yet.

    Hypotheses of earlier invocations are looked after too: what can no longer be read is measured
    again.

    Args:
      run: where results go.
      chosen: the hypotheses of this invocation.
      pool: the examples that halves are drawn from.
    """
    every = {study.id: study for study in (*_earlier(run), *chosen)}
    ids = family.sort_ids(every)
    requests = _requests([every[name] for name in ids], run.config)
    needed = _conditions(requests)
    missing = [request for request in requests if not run.has_measurement(request)]
    wanted = _conditions(missing)
    loaded = {one: run.load_population(one) for one in wanted}
    in_memory = {one: population for one, population in loaded.items() if population is not None}
    untrained = [one for one in wanted if one not in in_memory]
    if run.resumed:
        done = sum(one in in_memory or one not in loaded for one in needed)
        LOG.info("resumed %d of %d populations", done, len(needed))
    seconds: dict[str, float] = run.notes()["seconds"]
    root = jax.random.key(run.config.seed)

    with Progress(len(untrained) + len(missing)) as progress:
        for one in untrained:
            stop_if_asked()
            with progress.stage(f"train {label(one)}", "training", seconds):
                in_memory[one] = run.train(one, pool, progress.within)
            run.note(seconds=seconds)
        for request in missing:
            stop_if_asked()
            what = f"{request.measurement.name} {label(request.conditions[0])}"
            with progress.stage(what, request.measurement.name, seconds):
                parts = [in_memory[one] for one in request.conditions]
                key = jax.random.fold_in(root, request.measurement.salt)
                measured = request.measurement.measure(key, parts, pool, run.config)
                run.save_measurement(request, measured)
            run.note(seconds=seconds)
            if processes.count() == 1:  # several would have to do it together
                devices.forget_programs()
    run.merge(requests)
    run.note(hypotheses=ids)


def conditions(chosen: Sequence[Study], config: RunConfig, pool: Split) -> list[Condition]:
    """Returns the conditions that studies need, checked against the pool.

    Args:
      chosen: the hypotheses.
      config: of the run.
      pool: the examples that halves are drawn from.

    Raises:
      UserError: if a study cannot be run on this config, or the halves do not fit into the pool.
    """
    try:
        wanted = _conditions(_requests(chosen, config))
    except ValueError as error:
        raise UserError(str(error)) from error
    check_conditions(wanted, pool)
    return wanted


def check_conditions(wanted: Iterable[Condition], pool: Split) -> None:
    """Checks that populations can be trained on a pool, without training any.

    Args:
      wanted: their conditions.
      pool: the examples that halves are drawn from.

    Raises:
      UserError: if one cannot.
    """
    for condition in wanted:
        try:
            populations.validate(condition, pool)
        except (ValueError, TypeError) as error:
            raise UserError(str(error)) from error


def check_tensorboard(wanted: bool) -> None:
    """Checks that what writes event files is there, where they are wanted, before any training."""
    if wanted:
        tensorboard.check()


def write_events(run: Run, chosen: Sequence[Study], wanted: bool = True) -> None:
    """Writes TensorBoard event files of the stored populations that hypotheses need.

    Args:
      run: with populations.
      chosen: the hypotheses.
      wanted: whether to write any.
    """
    if wanted:
        processes.shared(lambda: _write_events(run, chosen))


def _write_events(run: Run, chosen: Sequence[Study]) -> None:
    for one in _conditions(_requests(chosen, run.config)):
        population = run.load_population(one)
        if population is not None:
            name = f"{label(one)} {one.key}".replace("/", "-")
            with run.writing():
                tensorboard.write(run.path / "tensorboard" / name, population)


def plan(
    path: Path, config: RunConfig, chosen: Sequence[Study], pool: Split, layout: sharding.Layout
) -> str:
    """Returns what a run would train and measure, in words, and does nothing.

    Args:
      path: where results would go.
      config: of the run.
      chosen: the hypotheses.
      pool: the examples that halves are drawn from.
      layout: where it would compute.

    Raises:
      UserError: if the folder holds a run that cannot be read.
    """
    requests = _requests(chosen, config)
    missing, stored = _conditions(requests), []
    if (path / "config.json").is_file():
        run = Run.open(path)
        stored = [one for one in missing if run.has_population(one)]
        requests = [request for request in requests if not run.has_measurement(request)]
        missing = [one for one in _conditions(requests) if one not in stored]
    return estimates.in_words(
        estimates.estimate(missing, pool, layout),
        layout,
        num_stored=len(stored),
        measurements=collections.Counter(request.measurement.name for request in requests),
    )


def stop_if_asked() -> None:
    """Ends the run between two stages where it was asked to end; all processes agree.

    Raises:
      processes.Terminated: if it was.
    """
    if processes.is_ending():
        raise processes.Terminated


def _earlier(run: Run) -> list[Study]:
    """Returns the hypotheses that have been run in a folder."""
    known, names = studies.available(), run.notes()["hypotheses"]
    for name in names:
        if name not in known:
            raise UserError(f"this version has no study {name}, which {run.path} was run with")
    return [known[name] for name in names]


def _requests(chosen: Sequence[Study], config: RunConfig) -> list[Request]:
    requests = {request.key: request for study in chosen for request in study.needs(config)}
    return list(requests.values())


def _conditions(requests: Sequence[Request]) -> list[Condition]:
    return list(dict.fromkeys(one for request in requests for one in request.conditions))


def label(one: Condition) -> str:
    """Returns a condition in a few words, for progress and messages."""
    words = [one.architecture, "permuted" if one.permuted else f"ρ={one.noise_rate:g}"]
    words += [f"ω={one.overlap:g}"] if one.overlap else []
    words += ["one start"] if one.shared_start else []
    return " ".join(words)


def conclude(run: Run) -> list[Verdict]:
    """Returns the verdicts of every hypothesis run so far, and writes them with figures and report.

    Args:
      run: with records.

    Raises:
      UserError: if there are no records, or a study that was run does not exist here.
    """
    started = time.monotonic()
    notes, chosen = run.notes(), _earlier(run)
    records = run.records(_requests(chosen, run.config))
    try:
        outcomes = [(study, study.decide(records)) for study in chosen]
    except LookupError as error:
        raise UserError(
            f"the records of {run.path} are incomplete ({error}): run reproduce again"
        ) from error
    verdicts = family.conclude(outcomes, evidence=evidence.kind(run.config))
    figures = {
        # Where a condition has no pair left there is nothing to draw.
        study.id: study.draw(records, verdict) if verdict.num_pairs else ()
        for study, verdict in zip(chosen, verdicts, strict=True)
    }
    explanations = {
        study.id: study.explain(verdict) for study, verdict in zip(chosen, verdicts, strict=True)
    }
    overview = summary.overview(records)
    warnings = [*_settings_warning(run), *overview.warnings]
    for warning in warnings:
        LOG.warning("%s", warning)
    with run.writing():
        storage.write_json(run.path / "verdicts.json", [verdict.to_json() for verdict in verdicts])
        forest = report.forest_figure(verdicts, family.FAMILY)
        report.save_figures(
            run.path / "figures",
            [
                *([forest] if forest else []),
                *(figure for drawn in figures.values() for figure in drawn),
                *overview.figures,
            ],
        )
        seconds = notes["seconds"] | {"verdicts, figures, report": time.monotonic() - started}
        report.write(
            run.path / "report.html",
            verdicts=verdicts,
            figures=figures,
            explanations=explanations,
            family=family.FAMILY,
            condition_tables=overview.tables,
            condition_figures=overview.figures,
            run=run_info(run, seconds, warnings, len(records.conditions)),
        )
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
) -> report.RunInfo:
    """Returns what the page says of a run.

    Args:
      run: as it is on disk.
      seconds: run time by stage.
      warnings: a sentence each.
      num_conditions: that were trained.
    """
    config, noted = run.config, run.notes()["environment"]
    return report.RunInfo(
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
        warnings=warnings,
        evidence=evidence.kind(config),
        layout=noted.get("layout", ""),
        compute_dtype=config.training.compute_dtype,
    )


def ending(run: Run, verdicts: Sequence[Verdict]) -> str:
    """Returns what a terminal shows at the end: the map, the verdicts, where the report is."""
    return f"{wording.terminal_map(verdicts, family.FAMILY)}\n\n{run.path / 'report.html'}"


def finish(run: Run) -> None:
    """Decides, writes the report and prints the map, the verdicts and where the report is.

    Args:
      run: with records.
    """
    processes.shared(lambda: print(ending(run, conclude(run)), flush=True))
