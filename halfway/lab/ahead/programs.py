"""The programs of runs, landscapes, transfer and evaluations, compiled ahead of time."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from halfway import populations, robustness, sharding, transfer
from halfway.attacks import Threat
from halfway.data import Split
from halfway.lab.ahead import table
from halfway.lab.ahead.recording import Recorder, Row
from halfway.lab.config.settings import LandscapeSizes, RunConfig
from halfway.lab.config.user import LOG
from halfway.lab.measurements import weight_space
from halfway.lab.runtime import pipeline
from halfway.lab.runtime.devices import Hardware
from halfway.lab.runtime.estimates import scaled
from halfway.lab.study.protocol import Study
from halfway.lab.user_models import landscapes as user_landscapes
from halfway.lab.user_models.loading import Examples
from halfway.populations import Condition
from halfway.types import Array, LogitsFn, Params

_LOWER = {
    "draw": "config.num_examples or config.num_holdout",
    "init": "config.models",
    "start": "config.num_pairs or config.training.probe_steps",
    "advance": "config.training.batch_size, or more devices along data",
    "look": "config.num_examples or config.num_holdout",
}
"""The fields that lower the memory of the programs of training, by name."""


def lower_of_run(name: str) -> str:
    """Returns what to lower in the config of a run where a program does not fit.

    Args:
      name: of the program.
    """
    first = name.split()[0]
    return _LOWER.get(first, "config.num_examples, config.num_holdout or config.num_pairs")


def recorder(
    hardware: Hardware, lower_fn: Callable[[str], str] = lower_of_run, **options: Any
) -> Recorder:
    """Returns a recorder that says each program as it is compiled.

    Args:
      hardware: what is compiled for.
      lower_fn: name of a program to what to lower where it does not fit.
      **options: others of `Recorder`.
    """

    def say(row: Row) -> None:
        words = row.problem or "compiles"
        where = f"{row.program} {row.model}".strip()
        LOG.info("%s: %s: %s, %.0f s", row.stage, where, words, row.compile_seconds)

    return Recorder(hardware.name, hardware.device_bytes, lower_fn=lower_fn, say=say, **options)


def of_run(record: Recorder, config: RunConfig, chosen: Sequence[Study], pool: Split) -> None:
    """Compiles the programs that train and measure what studies need, on the layout in force.

    Args:
      record: takes the programs.
      config: the settings of the run.
      chosen: the studies.
      pool: the examples that halves are drawn from.
    """
    with sharding.taken_by(record):
        trained = {}
        for condition in pipeline.conditions(chosen, config, pool):
            record.stage = f"train {condition.architecture}"
            trained[condition] = populations.train(condition, pool)
        for request in pipeline.requests(chosen, config):
            record.stage = request.measurement.name
            parts = [trained[condition] for condition in request.conditions]
            _go_through(record, functools.partial(pipeline.measured, request, parts, pool, config))


def of_landscapes(
    record: Recorder, condition: Condition, pool: Split, sizes: LandscapeSizes
) -> None:
    """Compiles the programs that train a population and draw its landscapes.

    Args:
      record: takes the programs.
      condition: of the population.
      pool: the examples that halves are drawn from.
      sizes: of the landscapes.
    """
    with sharding.taken_by(record):
        record.stage = f"train {condition.architecture}"
        population = populations.train(condition, pool)
        record.stage = "landscapes"
        key = jax.random.key(condition.seed)
        _go_through(record, lambda: weight_space.measure(population, pool, key, sizes))


def of_user_landscapes(
    record: Recorder,
    loss_fn: Callable[[Params], Array],
    members: Sequence[Params],
    sizes: LandscapeSizes,
) -> None:
    """Compiles the programs that draw landscapes of models that a user brings.

    Args:
      record: takes the programs.
      loss_fn: parameters to a scalar.
      members: one to three pytrees of equal shapes.
      sizes: of the landscapes.
    """
    with sharding.taken_by(record):
        record.stage = "landscapes"
        key = jax.random.key(0)
        _go_through(record, lambda: user_landscapes.measure(loss_fn, members, key, sizes))


def of_transfer(record: Recorder, *models: Mapping[str, Any], **options: Any) -> None:
    """Compiles the programs of a transfer grid.

    Args:
      record: takes the programs.
      *models: surrogates and targets by name.
      **options: others of `transfer.transfer_grid`; of several budgets the first will do.
    """
    with sharding.taken_by(record):
        record.stage = "transfer"
        made = functools.partial(transfer.transfer_grid, *models, jax.random.key(0))
        _go_through(record, lambda: made(**options))


def of_attack(record: Recorder, attack: functools.partial[Any], *args: Any, **kwargs: Any) -> None:
    """Compiles an attack on its own.

    Args:
      record: takes the program.
      attack: a part of the function, `functools.partial`.
      *args, **kwargs: its arguments that are no part of the program.
    """
    with sharding.taken_by(record):
        record.stage = "attack"
        name = f"attack {attack.func.__name__}"
        _go_through(record, lambda: sharding.alone(attack, hot=True)(*args, **kwargs), name)


def of_evaluation(
    record: Recorder,
    logits_fn: LogitsFn,
    images: np.ndarray,
    *,
    threats: Sequence[Threat],
    attacks: Mapping[str, Callable[..., Any]],
    **options: Any,
) -> None:
    """Compiles the programs that say how robust a model is.

    Args:
      record: takes the programs; its integers are zeros, so that every image counts as right.
      logits_fn: the model.
      images: `[B, ...]`.
      threats: threat models of one budget each.
      attacks: by name.
      **options: others of `robustness.evaluate_steps`.
    """
    labels = np.zeros(len(images), np.int32)
    with sharding.taken_by(record):
        record.stage = "evaluate"
        arguments = {"threats": threats, "attacks": attacks, **options}
        _go_through(record, lambda: robustness.evaluate(logits_fn, images, labels, **arguments))


def said_of_run(hardware: Hardware, config: RunConfig, chosen: Sequence[Study], pool: Split) -> str:
    """Returns what a terminal shows of the programs of a run, on the layout in force.

    Args:
      hardware: what is compiled for.
      config, chosen, pool: as of `of_run`.
    """
    return _said(recorder(hardware), lambda record: of_run(record, config, chosen, pool))


def said_of_landscapes(
    hardware: Hardware, condition: Condition, pool: Split, sizes: LandscapeSizes
) -> str:
    """Returns what a terminal shows of the programs of landscapes, on the layout in force.

    Args:
      hardware: what is compiled for.
      condition, pool, sizes: as of `of_landscapes`.
    """
    return _said(recorder(hardware), lambda record: of_landscapes(record, condition, pool, sizes))


def said_of_user_landscapes(
    hardware: Hardware,
    loss_fn: Callable[[Params], Array],
    members: Sequence[Params],
    sizes: LandscapeSizes,
) -> str:
    """Returns what a terminal shows of landscapes of a user's models, on the layout in force.

    Args:
      hardware: what is compiled for.
      loss_fn, members, sizes: as of `of_user_landscapes`.
    """
    record = recorder(hardware, lambda name: "the number of examples in --loss")
    return _said(record, lambda record: of_user_landscapes(record, loss_fn, members, sizes))


def said_of_transfer(
    hardware: Hardware,
    models: Sequence[Mapping[str, Any]],
    examples: Examples,
    options: Mapping[str, Any],
) -> str:
    """Returns what a terminal shows of the programs of a transfer grid, on the layout in force.

    Args:
      hardware: what is compiled for.
      models: surrogates and targets.
      examples: labelled images.
      options: as of `of_transfer`.
    """
    record = recorder(hardware, lambda name: "--num_examples, or the number of models")
    data = {"x": examples.images, "labels": examples.labels}
    return _said(record, lambda record: of_transfer(record, *models, **data, **options))


def said_of_evaluation(
    hardware: Hardware, model: LogitsFn, examples: Examples, options: Mapping[str, Any]
) -> str:
    """Returns what a terminal shows of the programs of an evaluation, on one device.

    Args:
      hardware: what is compiled for.
      model: that is evaluated.
      examples: labelled images.
      options: as of `of_evaluation`.
    """
    record = recorder(hardware, lambda name: "--batch_size", modulus=1)
    # No program has more images than these.
    images = examples.images[: max(options["batch_size"], robustness.NUM_DIAGNOSED)]
    layout = sharding.Layout(sharding.make_mesh(1, devices=hardware.devices))
    with sharding.use(layout):
        return _said(record, lambda record: of_evaluation(record, model, images, **options))


def _said(record: Recorder, work: Callable[[Recorder], None]) -> str:
    """Returns what a terminal shows of the programs of some work."""
    work(record)
    where = f"{record.hardware}, mesh {sharding.current()}"
    if record.device_bytes is not None:
        where += f", {scaled(record.device_bytes, 'B')} a device"
    return table.as_text(list(record.rows.values()), record.unfinished, where)


def _go_through(record: Recorder, work: Callable[[], Any], name: str | None = None) -> None:
    """Does what a host does between programs; says so where it cannot go on with stand-ins.

    The name of the work is that of the stage, where none is given.
    """
    name = name or record.stage
    try:
        with np.errstate(all="ignore"):
            work()
    except Exception as error:  # what stands for results is no result
        words = " ".join(str(error).split())[:120]
        record.unfinished[name] = f"{type(error).__name__}: {words}"
        LOG.info("%s: no further with stand-ins for results (%s)", name, words)
