"""Models, images and attacks that a user names, which are checked before the first attack."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from halfway import attacks, files, interop, losses, storage, user_code
from halfway.attacks import AttackResult, StagedResult, Threat
from halfway.lab.config import user
from halfway.lab.config.user import UserError
from halfway.lab.measurements import crossed
from halfway.lab.runtime import datasets
from halfway.lab.runtime.runs import Run
from halfway.lab.study.conditions import condition
from halfway.transfer import Attack
from halfway.transfer.grid import Model
from halfway.types import LogitsFn

NUM_CHECKED = 64
"""Number of images on which each model is checked."""


class Examples(NamedTuple):
    """Labelled images to attack, drawn evenly from all classes where not all are taken.

    Attributes:
      images: `[B, ...]` float32 in [0, 1].
      labels: `[B]` int32.
      source: where they are from, in words.
    """

    images: np.ndarray
    labels: np.ndarray
    source: str


def load_models(flag: str, name: str) -> dict[str, Model]:
    """Returns the models that a user's function returns, or those of a run.

    Args:
      flag: the flag that names them.
      name: the value of the flag: `pkg.module:fn`, or `run:FOLDER` for the models θ_A of a run,
        `run:FOLDER:B` for its θ_B.

    Raises:
      UserError: if there is no such function, it fails, or it does not return a dict of models; if
        the folder is no run, or holds no population without label noise.
    """
    if name.startswith(_RUN):
        return _models_of_run(flag, name)
    load = user.load_function(flag, name)
    with user.running(f"--{flag}={name} fails"):
        loaded = load()
    if not isinstance(loaded, Mapping) or not loaded:
        raise UserError(
            f"--{flag}={name} must return a dict of names to models, got {type(loaded).__name__}"
        )
    for model_name, model in loaded.items():
        if "$" in str(model_name) or not str(model_name).isprintable():
            raise UserError(
                f"--{flag}={name}: the name {model_name!r} has a $, which begins a formula in "
                "figures, or what cannot be printed: rename the model"
            )
        stacked = isinstance(model, tuple) and len(model) == 2 and callable(model[0])
        sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(model[1])} if stacked else set()
        usable = callable(model) or (len(sizes) == 1 and () not in sizes)
        if not (isinstance(model_name, str) and usable):
            raise UserError(
                f"--{flag}={name}: {model_name!r} must be a function from images to logits, or "
                f"(apply_fn, parameters stacked along one leading axis), got {type(model).__name__}"
            )
    return dict(loaded)


def load_model(flag: str, name: str) -> LogitsFn:
    """Returns the one model that a user's function returns.

    Args:
      flag: the flag that names it.
      name: the value of the flag, `pkg.module:fn`: a function without arguments that returns a
        function from images to logits.

    Raises:
      UserError: if there is no such function, it fails, or it returns something else.
    """
    load = user.load_function(flag, name)
    with user.running(f"--{flag}={name} fails"):
        model: Any = load()
    if isinstance(model, Mapping):
        raise UserError(
            f"--{flag}={name} returns {len(model)} models: return one; halfway transfer takes many"
        )
    if not callable(model):
        raise UserError(
            f"--{flag}={name} must return a function from images to logits, got "
            f"{type(model).__name__}"
        )
    return cast(LogitsFn, model)


_RUN = "run:"
_PARTIES = ("A", "B")


def _models_of_run(flag: str, name: str) -> dict[str, Model]:
    """Returns θ_A or θ_B of every pair, stacked, for each architecture of a run at ρ = 0."""
    folder, _, party = name.removeprefix(_RUN).rpartition(":")
    if party not in _PARTIES:
        folder, party = name.removeprefix(_RUN), _PARTIES[0]
    place = user.shortened(f"--{flag}={name}")
    try:
        run = Run.open(Path(folder))
    except UserError as error:
        raise UserError(f"{place}: {error}") from error
    stacked: dict[str, Model] = {}
    for architecture in run.config.architectures:
        try:
            population = run.read_population(condition(run.config, architecture))
        except UserError as error:
            raise UserError(f"{place}: {error}") from error
        if population is not None:
            params = crossed.side(population.params, _PARTIES.index(party))
            stacked[architecture] = population.apply_fn, params
    if not stacked:
        raise UserError(
            f"{place}: the run holds no population at ρ = 0 of "
            f"{', '.join(run.config.architectures)}: run reproduce --only=G1 there"
        )
    return stacked


def load_examples(
    name: str,
    data_dir: str | None,
    num_examples: int | None,
    seed: int = 0,
    *,
    max_gb: float = files.MAX_GB,
) -> Examples:
    """Returns images of a data set's test split, or of an .npz file.

    Args:
      name: the name of a data set of `halfway.data`, or a path that ends in .npz.
      data_dir: data folder.
      num_examples: the largest number of images, drawn by `draw_evenly`; None: all, as they lie.
      seed: of the draw.
      max_gb: gigabytes that may be read into memory.

    Raises:
      UserError: if the images cannot be read, are not images in [0, 1] with labels, or fewer than
        2.
    """
    if not name.endswith(".npz"):
        dataset = datasets.load(name, data_dir, max_gb=max_gb)
        part = "test" if len(dataset.test.labels) else "train"
        images, labels = getattr(dataset, part)
        source = f"{name}, {part} split"
    else:
        try:
            arrays = storage.read_arrays(Path(name), max_gb=max_gb)
            images, labels = arrays["images"], arrays["labels"]
        except files.Refused as error:
            raise UserError(f"--data: {error}") from error
        except storage.UNREADABLE as error:
            raise UserError(
                f"--data={name} cannot be read as an .npz of images and labels ({_reason(error)})"
            ) from error
        source = name
        if images.dtype == np.uint8:
            images = images.astype(np.float32) / np.float32(255)
        whole = np.issubdtype(labels.dtype, np.integer) and labels.shape == images.shape[:1]
        if images.ndim < 2 or not whole or labels.min(initial=0) < 0:
            raise UserError(
                f"--data={name}: images [N, ...] and labels [N] from 0 on are needed, got "
                f"{images.shape} and {labels.dtype} {labels.shape}"
            )
        if not (images.min(initial=0) >= 0 and images.max(initial=0) <= 1):
            raise UserError(f"--data={name}: images must lie in [0, 1], or be uint8")
    labels = np.asarray(labels)
    number = len(labels) if num_examples is None else min(num_examples, len(labels))
    if number < 2:
        raise UserError(f"--data={name}: at least 2 examples are needed, got {number}")
    rows = draw_evenly(labels, number, seed)
    return Examples(images[rows].astype(np.float32), labels[rows].astype(np.int32), source)


def draw_evenly(labels: np.ndarray, number: int, seed: int) -> np.ndarray:
    """Returns rows `[number]` in ascending order: of each class as many as of any other.

    Folders and archives are sorted by class, so that the first rows would be of one. Where a class
    has too few, the others have more; a rest is drawn from all.

    Args:
      labels: `[N]` integers.
      number: of rows, at most N.
      seed: of the draw.

    Examples:
      >>> labels = np.array([0, 0, 0, 0, 1, 1, 2])
      >>> labels[loading.draw_evenly(labels, 5, 0)].tolist()
      [0, 0, 1, 1, 2]
    """
    if number == len(labels):
        return np.arange(number)
    order = np.random.default_rng(seed).permutation(len(labels))
    turns = np.zeros(len(labels), int)
    for label in np.unique(labels):
        rows = order[labels[order] == label]
        turns[rows] = np.arange(len(rows))
    # First the first of each class, then the second of each, and so on.
    return np.sort(order[np.argsort(turns[order], kind="stable")][:number])


def check_models(models: Mapping[str, Mapping[str, Model]], examples: Examples) -> np.ndarray:
    """Returns logits of the first images, `[M, B, C]`, after checking that all models have them.

    They are finite, of equally many classes, and those of an image do not depend on others. Models
    that several flags name come once.

    Args:
      models: the models that each flag names.
      examples: the images; each model is called with the first `NUM_CHECKED`.

    Raises:
      UserError: if a model does not; the message names the first such model.
    """
    x, classes = jnp.asarray(examples.images[:NUM_CHECKED]), {}
    outputs: list[np.ndarray] = []
    needed = int(examples.labels.max()) + 1
    distinct: dict[int, tuple[str, Mapping[str, Model]]] = {}
    for flag, group in models.items():
        distinct.setdefault(id(group), (flag, group))
    for flag, group in distinct.values():
        for name, model in members(group):
            where = f"--{flag}: model {name!r}"
            logits = _logits(where, model, x)
            classes[where] = logits.shape[1]
            if needed > logits.shape[1]:
                raise UserError(
                    f"{where} has {logits.shape[1]} classes, the labels go up to {needed - 1}"
                )
            other, number = next(iter(classes.items()))
            if number != logits.shape[1]:
                raise UserError(f"{where} has {logits.shape[1]} classes, {other} has {number}")
            alone = _logits(where, model, x[:1])
            if not np.allclose(alone[0], logits[0], rtol=1e-2, atol=1e-2 * np.ptp(logits)):
                raise UserError(
                    f"{where} gives an image other logits alone than among others: switch dropout "
                    "and batch normalization to evaluation"
                )
            outputs.append(logits)
    return np.stack(outputs)


def members(group: Mapping[str, Model]) -> list[tuple[str, LogitsFn]]:
    """Returns the name and function of each model of a group; stacks become NAME/0, NAME/1, ...

    Args:
      group: the models of a flag.
    """
    models = []
    for name, model in group.items():
        if isinstance(model, tuple):
            apply_fn, params = model
            for index in range(len(jax.tree.leaves(params)[0])):
                member = jax.tree.map(lambda leaf, index=index: leaf[index], params)
                models.append((f"{name}/{index}", functools.partial(apply_fn, member)))
        else:
            models.append((name, model))
    return models


def runs_on_host(groups: Sequence[Mapping[str, Model]]) -> bool:
    """Returns whether any model calls a library on the host, so that one device must do.

    Args:
      groups: models by name.
    """
    models = [model for group in groups for model in group.values()]
    fns = [model[0] if isinstance(model, tuple) else model for model in models]
    return any(getattr(fn, interop.ON_HOST, False) for fn in fns)


def _logits(where: str, model: LogitsFn, x: Any) -> np.ndarray:
    if type(model).__module__.split(".")[0] == "torch" or hasattr(model, "state_dict"):
        raise UserError(f"{where} is a PyTorch module: return halfway.interop.torch_logits(module)")
    try:
        # Parameters are arguments of the program, so that members of a stack share it.
        bound = model if isinstance(model, functools.partial) else None
        call = _call if bound else jax.jit(model)
        made = call(bound.func, bound.args[0], x) if bound else call(x)  # pyright: ignore
    except (Exception, SystemExit) as error:  # somebody else's code
        if "trace level" in str(error):
            raise UserError(
                f"{where} changes its own state when it is called, as NNX modules do in training: "
                "call model.eval() first"
            ) from error
        shape = list(x.shape[1:])
        raise UserError(
            f"{where} fails on images of shape {shape}, which --data has: {user_code.reason(error)}"
        ) from error
    if isinstance(made, tuple | list | dict):
        raise UserError(
            f"{where} returns a {type(made).__name__}: return the logits alone, e.g. "
            "lambda x: model(x)[0]"
        )
    logits = np.asarray(made)
    if logits.ndim != 2 or logits.shape[0] != len(x) or logits.shape[1] < 2:
        raise UserError(
            f"{where} must return logits of shape [{len(x)}, classes], got {list(logits.shape)}"
        )
    if not np.issubdtype(logits.dtype, np.floating) or not np.isfinite(logits).all():
        raise UserError(f"{where} returns what is not a finite number: NaN, infinity or integers")
    if logits.min() >= 0 and logits.max() <= 1 and np.allclose(logits.sum(1), 1, atol=1e-3):
        raise UserError(f"{where} returns probabilities: return logits, before the softmax")
    return logits


@functools.partial(jax.jit, static_argnums=0)
def _call(apply_fn: Any, params: Any, x: Any) -> Any:
    return apply_fn(params, x)


def attack_names() -> list[str]:
    """Returns the names of the attacks on a `logits_fn` that take a threat model."""
    names = []
    for name in attacks.__all__:
        if not inspect.isfunction(fn := getattr(attacks, name)):
            continue
        signature = inspect.signature(fn)
        plain = next(iter(signature.parameters)) == "logits_fn" and "threat" in signature.parameters
        if plain and signature.return_annotation in (AttackResult, StagedResult):
            names.append(name)
    return names


def named_attacks(names: Sequence[str]) -> dict[str, Callable[..., Any]]:
    """Returns attacks by name, each once.

    Args:
      names: names of attacks in `halfway.attacks`.

    Raises:
      UserError: for a name that is no attack.
    """
    known, wanted = attack_names(), dict.fromkeys(name.strip() for name in names)
    for name in wanted:
        if name not in known:
            raise UserError(f"--attacks must be among {', '.join(known)}, got {name!r}")
    return {name: getattr(attacks, name) for name in wanted}


def choose_attacks(names: Sequence[str], num_steps: int | None) -> dict[str, functools.partial]:
    """Returns attacks by name; attacks that take a loss use the margin loss, as M_x does.

    Args:
      names: names of attacks in `halfway.attacks`.
      num_steps: the number of steps of attacks that take steps; None for their defaults.

    Raises:
      UserError: for a name that is no attack.
    """
    chosen = {}
    for name, fn in named_attacks(names).items():
        parameters = inspect.signature(fn).parameters
        passes = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        options: dict[str, Any] = {}
        if passes or "loss_fn" in parameters:
            options["loss_fn"] = losses.margin
        if num_steps is not None and (passes or "num_steps" in parameters):
            options["num_steps"] = num_steps
        chosen[name] = functools.partial(fn, **options)
    return chosen


def check_attacks(
    attack_fns: Mapping[str, Attack], threat: Threat, model: LogitsFn, examples: Examples
) -> None:
    """Checks that every attack can be traced on a model, without running it.

    Args:
      attack_fns: the attacks by name.
      threat: a threat model with one budget.
      model: a model of the user.
      examples: labelled images, of which two are used.

    Raises:
      UserError: if an attack cannot be traced, with its message.
    """
    x, labels = jnp.asarray(examples.images[:2]), jnp.asarray(examples.labels[:2])
    for name, attack in attack_fns.items():
        run = functools.partial(attack, model, threat=threat)
        try:
            jax.eval_shape(run, jax.random.key(0), x, labels)
        except (ValueError, TypeError, AssertionError, SystemExit) as error:
            where = user_code.place(error)
            words = user_code.reason(error) if where else _reason(error)
            raise UserError(f"--attacks={name}: {words}") from error


def _reason(error: BaseException) -> str:
    words = " ".join(str(error).split()) or type(error).__name__
    return words if len(words) <= 300 else f"{words[:300]} ..."
