"""How robust one model is on a whole data set: attacks at several budgets, resumable.

`evaluate` runs to the end, `evaluate_steps` yields after each batch what is known so far. Arrays of
the results are of NumPy. Not to be jitted: programs are compiled here, one for each attack and
stage, and the last batch is filled up, so that it compiles nothing.
"""

import collections
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from halfway import attacks as library
from halfway import losses, sharding, stats
from halfway.attacks import AttackResult, Diagnosis, Threat, door
from halfway.attacks.auto.staged import filled, hashable
from halfway.attacks.auto.suite import Plan
from halfway.attacks.diagnostics import ZERO_GRADIENT
from halfway.keys import named_key
from halfway.types import Array, Key, LogitsFn

__all__ = [
    "Attacks",
    "Robustness",
    "Step",
    "chosen",
    "evaluate",
    "evaluate_steps",
    "name_of",
]
Attacks = Sequence[str] | Mapping[str, Callable[..., AttackResult]]
"""Names of attacks of `halfway.attacks`, or functions with a `threat` by name."""
NUM_DIAGNOSED = 64
"""Images on which the model and the attack are looked at for signs of masked gradients."""
SLACK = 1e-4
"""Share of the budget by which a point may be farther away: rounding of 16 bits aside."""
MOST_CLASSES = 20
"""Of a model whose curves DeepFool helps to draw."""
SECOND_LOSS = "margin"
"""The loss that attacks are run with a second time where cross-entropy saturates."""


class Robustness(NamedTuple):
    """What attacks at T budgets have made of B images so far; arrays of NumPy.

    Attributes:
      attacks: names of the A attacks.
      threats: the T threat models, as given.
      labels: `[B]`.
      predicted: `[B]` int16, the class of each image as it is; −1 where a logit is NaN.
      fooled: `[A, T, B]` bool: right as it is, wrong at a point that the attack found. What fools a
        model at a smaller budget of the same norm fools it here.
      undecided: `[A, T, B]` bool: right as it is, but the model answers NaN at the point that was
        found, or the attack had nowhere to begin. Neither fooled nor robust.
      adversarial: `[T, B, ...]`, a point that fools the model within the budget, of the attack that
        found one first; the image itself where there is none.
      found_by: `[T, B]` int8, the place of that attack; −1 where there is none.
      seen_as: `[T, B]` int16, the class that the model sees in `adversarial`.
      norms: names of the norms whose curves were drawn.
      distance: `[N, B]`, the length of the smallest change in each of these norms that was found to
        fool the model: 0 where it errs from the start, infinite where none was found.
      diagnosis: of the first attack at the first budget, see `attacks.diagnose`; None without
        images.
    """

    attacks: tuple[str, ...]
    threats: tuple[Threat, ...]
    labels: np.ndarray
    predicted: np.ndarray
    fooled: np.ndarray
    undecided: np.ndarray
    adversarial: np.ndarray
    found_by: np.ndarray
    seen_as: np.ndarray
    norms: tuple[str, ...]
    distance: np.ndarray
    diagnosis: Diagnosis | None

    @property
    def right(self) -> np.ndarray:
        """`[B]` bool, whether the model classifies the image as it is rightly."""
        return self.predicted == self.labels

    def robust(self, place: int, attack: str | None = None) -> np.ndarray:
        """Returns `[B]` bool, whether the model is right at an image and no attack fooled it.

        Args:
          place: of the threat model.
          attack: its name; None: all attacks together, and what draws the curves.
        """
        if attack is not None:
            index = self.attacks.index(attack)
            return self.right & ~self.fooled[index, place] & ~self.undecided[index, place]
        lost = (self.fooled[:, place] | self.undecided[:, place]).any(0)
        threat = self.threats[place]
        if threat.norm.name in self.norms and threat.mask is None:
            distance = self.distance[self.norms.index(threat.norm.name)]
            lost |= distance <= float(threat.epsilon)
        return self.right & ~lost

    @property
    def clean_accuracy(self) -> stats.Share:
        """The share of images that are classified rightly as they are, with its interval."""
        return stats.share(self.right)

    def robust_accuracy(self, place: int, attack: str | None = None) -> stats.Share:
        """Returns the share of all images that stay right under attack, with its interval.

        Args:
          place: of the threat model.
          attack: its name; None: all attacks together.
        """
        return stats.share(self.robust(place, attack))

    def curve(self, norm: str, budgets: Any) -> np.ndarray:
        """Returns the share of images that no change of a length up to each budget was found for.

        Robust accuracy is at most this.

        Args:
          norm: of `norms`.
          budgets: `[E]`.
        """
        distance = np.where(self.right, self.distance[self.norms.index(norm)], 0.0)
        return (distance[None] > np.asarray(budgets, float)[:, None]).mean(1)


class Step(NamedTuple):
    """Where an evaluation stands; to be stored and given back. Later steps write over its arrays.

    Attributes:
      robustness: what is known so far.
      place: of the piece of work that is being done: an attack at a budget, or a curve.
      left: rows that it has still to attack.
      progress: of AutoAttack, where it is what runs; else None.
      share: about how much of the whole is done, 0 to 1.
      words: what was done, e.g. "auto_attack, linf 0.0314: 132 left".
    """

    robustness: Robustness
    place: int
    left: np.ndarray
    progress: library.Progress | None
    share: float
    words: str


def evaluate(
    logits_fn: LogitsFn,
    images: Array | np.ndarray,
    labels: Array | np.ndarray,
    *,
    threats: Sequence[Threat],
    attacks: Attacks = ("auto_attack",),
    **options: Any,
) -> Robustness:
    """Returns how robust a model is: its accuracy as it is and under attacks at several budgets.

    Args:
      logits_fn: `[B, ...]` to logits `[B, C]`; it must not couple examples.
      images: `[B, ...]` within the bounds of the threat models.
      labels: `[B]` integers.
      threats: threat models of one budget each, such as `attacks.linf(8 / 255)`.
      attacks: names of `halfway.attacks`, or functions by name.
      **options: of `evaluate_steps`.

    Raises:
      ValueError: as `evaluate_steps`.

    Examples:
      >>> model = lambda x: (x - 0.5) @ jnp.array([[1.0, -1.0], [1.0, -1.0]])
      >>> x, labels = jnp.array([[0.625, 0.5], [0.875, 0.875], [0.25, 0.5]]), jnp.array([0, 0, 0])
      >>> result = robustness.evaluate(
      ...     model, x, labels, threats=[attacks.linf(0.125)], attacks=["pgd"])
      >>> result.right.tolist(), result.robust(0).tolist()
      ([True, True, False], [False, True, False])
    """
    steps = evaluate_steps(logits_fn, images, labels, threats=threats, attacks=attacks, **options)
    return collections.deque(steps, maxlen=1)[0].robustness


def evaluate_steps(
    logits_fn: LogitsFn,
    images: Array | np.ndarray,
    labels: Array | np.ndarray,
    *,
    threats: Sequence[Threat],
    attacks: Attacks = ("auto_attack",),
    key: Key | None = None,
    curves: bool = True,
    batch_size: int = 64,
    step: Step | None = None,
) -> Iterator[Step]:
    """Yields what is known after each batch; the last step is the result.

    Budgets of a norm are taken in ascending order, and each attack is run on the images that are
    right as they are and that it has not fooled at a smaller budget. Whether an image is fooled is
    found out by looking at the point again, not taken from the attack. Where cross-entropy
    saturates, attacks that take a loss are run with the margin loss too. Programs are kept for the
    same `logits_fn`, until `jax.clear_caches`.

    Args:
      logits_fn, images, labels, threats, attacks: as of `evaluate`.
      key: consumed; None: that of seed 0, so that the same call has the same result.
      curves: whether the smallest change of each image is looked for in each norm, by
        `attacks.fmn`, 100 steps, and in linf and l2 of few classes `attacks.deepfool`.
      batch_size: images that are attacked at once; larger on accelerators.
      step: where to go on from: what an earlier call with the same arguments has yielded.

    Raises:
      ValueError: for inputs that attacks refuse; for no threat model or attack, or one whose budget
        is not one number; for an unknown attack; where an attack leaves the threat model.
    """
    x, y = np.asarray(images), np.asarray(labels)
    fns = chosen(attacks)
    threats = tuple(threats)
    if not threats or not fns:
        raise ValueError("at least one threat model and one attack are needed")
    for threat in threats:
        door.check(logits_fn, x, y, threat)
        if np.ndim(threat.epsilon):
            raise ValueError(f"a threat model of one budget is needed, got {threat.epsilon}")
    model = _Model(hashable(logits_fn), x, y, max(1, min(batch_size, len(x))))
    key = jax.random.key(0) if key is None else key
    if step is None:
        step = _start(model, threats, fns, key, curves)
    else:
        step = step._replace(robustness=_copied(step.robustness))
    return _steps(model, fns, key, step)


def chosen(attacks: Attacks) -> dict[str, Callable[..., AttackResult]]:
    """Returns attacks by name.

    Args:
      attacks: names of `halfway.attacks` that take a threat model, or functions by name.

    Raises:
      ValueError: for a name that is none.
    """
    if isinstance(attacks, Mapping):
        return dict(attacks)
    if isinstance(attacks, str):
        raise ValueError(f"attacks must be a sequence of names, got {attacks!r}: [{attacks!r}]")
    fns = {}
    for name in attacks:
        fn = getattr(library, name, None) if name in library.__all__ else None
        if not (inspect.isfunction(fn) and "threat" in inspect.signature(fn).parameters):
            raise ValueError(f"attacks must be names of attacks with a threat model, got {name!r}")
        fns[name] = fn
    return fns


def name_of(threat: Threat) -> str:
    """Returns norm and budget of a threat model in words, e.g. "linf 0.0314".

    Args:
      threat: of one budget.
    """
    part = "" if threat.mask is None else ", of some features"
    return f"{threat.norm.name} {float(threat.epsilon):.3g}{part}"


class _Model(NamedTuple):
    """What is attacked: a model on images `[B, ...]` with labels `[B]`, so many at once."""

    logits_fn: LogitsFn
    x: np.ndarray
    labels: np.ndarray
    batch_size: int


class _Work(NamedTuple):
    """An attack at a budget, or without an attack the curve of a norm.

    Attributes:
      attack: place of the attack; None of a curve.
      threat: place of the threat model; of a curve one of its norm.
      before: place of the next smaller budget of the same norm, or None.
    """

    attack: int | None
    threat: int
    before: int | None


def _plan(result: Robustness) -> tuple[_Work, ...]:
    """Returns the pieces of work in order: attack by attack, budgets ascending; then curves."""
    threats = result.threats
    order = sorted(range(len(threats)), key=lambda place: float(threats[place].epsilon))
    works = []
    for attack in range(len(result.attacks)):
        for rank, place in enumerate(order):
            smaller = (p for p in reversed(order[:rank]) if _is_alike(threats[p], threats[place]))
            works.append(_Work(attack, place, next(smaller, None)))
    names = [threat.norm.name for threat in threats]
    return (*works, *(_Work(None, names.index(norm), None) for norm in result.norms))


def _is_alike(threat: Threat, other: Threat) -> bool:
    """Returns whether two threat models differ in the budget alone; with a mask they do not."""
    if threat.norm != other.norm or threat.mask is not None or other.mask is not None:
        return False
    return all(map(np.array_equal, threat.bounds, other.bounds))


def _start(
    model: _Model,
    threats: tuple[Threat, ...],
    fns: Mapping[str, Callable[..., AttackResult]],
    key: Key,
    curves: bool,
) -> Step:
    """Returns the step before any attack: the images as they are, and what is to be done."""
    first = next(iter(fns.values()))
    diagnosis = _diagnosis(model, threats[0], first, key)
    saturates = diagnosis is not None and float(diagnosis.saturated) > ZERO_GRADIENT
    names = (*fns, *(_with_margin(fns) if saturates else ()))
    norms = [threat.norm.name for threat in threats if threat.mask is None and curves]
    norms = tuple(dict.fromkeys(norms))
    predicted = _predictions(model)
    right = predicted == model.labels
    shape = len(names), len(threats), len(model.x)
    result = Robustness(
        attacks=names,
        threats=threats,
        labels=model.labels,
        predicted=predicted,
        fooled=np.zeros(shape, bool),
        undecided=np.zeros(shape, bool),
        adversarial=np.broadcast_to(model.x, (len(threats), *model.x.shape)).copy(),
        found_by=np.full(shape[1:], -1, np.int8),
        seen_as=np.broadcast_to(predicted, shape[1:]).copy(),
        norms=norms,
        distance=np.where(right, np.inf, np.zeros((len(norms), len(right)))),
        diagnosis=diagnosis,
    )
    left = _begin(result, _plan(result)[0])
    return Step(result, 0, left, None, 0.0, "the images as they are")


def _steps(
    model: _Model, fns: Mapping[str, Callable[..., AttackResult]], key: Key, step: Step
) -> Iterator[Step]:
    """Yields as `evaluate_steps`, from a step on."""
    yield step
    result, left, progress = step.robustness, step.left, step.progress
    fns, works = {**_with_margin(fns), **fns}, _plan(result)
    for place in range(step.place, len(works)):
        work, words = works[place], _words(result, works[place])
        if place > step.place:
            left, progress = _begin(result, work), None
        _carry(result, work)
        threat, key_here = result.threats[work.threat], named_key(key, words)
        note = functools.partial(_note, result, work, model)
        attack_fn = None if work.attack is None else fns[result.attacks[work.attack]]
        options = None if attack_fn is None else _auto_options(attack_fn)
        if options is not None:
            pieces = _run_auto(note, options, threat, key_here, left, progress, model)
        else:
            run = functools.partial(_attacked, attack_fn=attack_fn)
            if attack_fn is None:
                run = functools.partial(_nearest, norm=threat.norm.name)
            run = functools.partial(run, threat, logits_fn=model.logits_fn)
            pieces = _run_batches(note, run, key_here, left, model)
        for rows, reached, share, said in pieces:
            share = (place + share) / len(works)
            yield Step(result, place, rows, reached, share, f"{words}: {said}")
    yield Step(result, len(works), np.zeros(0, int), None, 1.0, "done")


def _words(result: Robustness, work: _Work) -> str:
    threat = result.threats[work.threat]
    if work.attack is None:
        return f"smallest changes, {threat.norm.name}"
    return f"{result.attacks[work.attack]}, {name_of(threat)}"


def _copied(result: Robustness) -> Robustness:
    """Returns a result whose arrays may be written over; those that were given are not."""
    return result._replace(
        fooled=result.fooled.copy(),
        undecided=result.undecided.copy(),
        adversarial=result.adversarial.copy(),
        found_by=result.found_by.copy(),
        seen_as=result.seen_as.copy(),
        distance=result.distance.copy(),
    )


def _begin(result: Robustness, work: _Work) -> np.ndarray:
    """Returns the rows that a piece of work has to attack."""
    left = result.right
    if work.attack is not None and work.before is not None:
        left = left & ~result.fooled[work.attack, work.before]
    return np.flatnonzero(left)


def _carry(result: Robustness, work: _Work) -> None:
    """Takes over what the same attack found at a smaller budget."""
    if work.attack is None or work.before is None:
        return
    fooled = result.fooled[work.attack, work.before]
    result.fooled[work.attack, work.threat] |= fooled
    new = fooled & (result.found_by[work.threat] < 0)
    result.adversarial[work.threat][new] = result.adversarial[work.before][new]
    result.found_by[work.threat, new] = result.found_by[work.before, new]
    result.seen_as[work.threat, new] = result.seen_as[work.before, new]


class _Reached(NamedTuple):
    """Where a piece of work stands after a batch: the fields of `Step`, within the piece."""

    left: np.ndarray
    progress: library.Progress | None
    share: float
    words: str


def _run_batches(
    note: Callable[..., None], run: Callable[..., Any], key: Key, left: np.ndarray, model: _Model
) -> Iterator[_Reached]:
    """Attacks the rows that are left, batch by batch.

    Args:
      note: writes down rows, points and losses.
      run: key, images and labels to points and losses.
      key: of this piece of work.
      left: rows.
      model: that is attacked.
    """
    total, size = len(left), model.batch_size
    while len(left):
        rows, left = left[:size], left[size:]
        places = filled(rows, size)
        made = run(jax.random.fold_in(key, int(rows[0])), model.x[places], model.labels[places])
        note(rows, *(np.asarray(values)[: len(rows)] for values in made))
        yield _Reached(left, None, 1 - len(left) / total, f"{len(left)} left")


def _run_auto(
    note: Callable[..., None],
    options: dict[str, Any],
    threat: Threat,
    key: Key,
    left: np.ndarray,
    progress: library.Progress | None,
    model: _Model,
) -> Iterator[_Reached]:
    """Attacks the rows that are left by AutoAttack, stage by stage over all of them.

    Args:
      note: writes down rows, points and losses.
      options: of AutoAttack.
      threat: of the attack.
      key: of this piece of work.
      left: rows.
      progress: where an earlier run of this piece stood, or None.
      model: that is attacked.
    """
    if not len(left):
        return
    stages = ("", *Plan(**options).stages)
    for progress in library.auto_attack_steps(  # noqa: B020
        model.logits_fn,
        key,
        model.x[left],  # pyright: ignore[reportArgumentType]
        model.labels[left],  # pyright: ignore[reportArgumentType]
        threat=threat,
        chunk_size=model.batch_size,
        progress=progress,
        **options,
    ):
        share = (1 + progress.stage - len(progress.left) / len(left)) / len(stages)
        stage = f"stage {stages[1 + progress.stage]}, class {1 + progress.rank}, "
        words = f"{stage if progress.stage >= 0 else ''}{len(progress.left)} left"
        yield _Reached(left, progress, min(max(share, 0.0), 1.0), words)
    assert progress is not None
    result = progress.result
    for begin in range(0, len(left), model.batch_size):
        part = slice(begin, begin + model.batch_size)
        note(left[part], np.asarray(result.adversarial)[part], np.asarray(result.loss)[part])
    yield _Reached(left[:0], None, 1.0, "0 left")


def _auto_options(fn: Callable[..., Any]) -> dict[str, Any] | None:
    """Returns the options of AutoAttack but for its chunks; None for other attacks."""
    inner = fn.func if isinstance(fn, functools.partial) else fn
    if inner is not library.auto_attack:
        return None
    options = dict(fn.keywords) if isinstance(fn, functools.partial) else {}
    options.pop("chunk_size", None)
    return options


@functools.partial(sharding.alone, static_argnames=("logits_fn", "attack_fn"), hot=True)
def _attacked(threat, key, x, labels, *, logits_fn: LogitsFn, attack_fn: Callable[..., Any]):
    made = attack_fn(logits_fn, key, x, labels, threat=threat)
    return made.adversarial, made.loss


@functools.partial(sharding.alone, static_argnames=("logits_fn", "norm"), hot=True)
def _nearest(threat, key, x, labels, *, logits_fn: LogitsFn, norm: str):
    """Returns the nearer success of FMN and DeepFool: each is stuck now and then.

    DeepFool is not in l1, and takes a gradient for each class, too many of hundreds.
    """
    many = jax.eval_shape(logits_fn, x).shape[1] > MOST_CLASSES
    fns = [library.fmn] if norm == "l1" or many else [library.fmn, library.deepfool]
    made = [fn(logits_fn, key, x, labels, norm=norm, bounds=threat.bounds) for fn in fns]
    lengths = jnp.stack(
        [jnp.where(m.success, library.distance(m.adversarial, x, norm), jnp.inf) for m in made]
    )
    shorter = (lengths[-1] < lengths[0]).reshape(-1, *[1] * (x.ndim - 1))
    return jnp.where(shorter, made[-1].adversarial, made[0].adversarial), made[0].loss


@functools.partial(sharding.alone, static_argnames=("logits_fn", "norms"))
def _look(points, x, *, logits_fn: LogitsFn, norms: tuple[str, ...]):
    """Returns the class of each point, −1 where a logit is NaN, and lengths of its change."""
    logits = logits_fn(points)
    predicted = jnp.where(jnp.isnan(logits).any(-1), -1, logits.argmax(-1)).astype(jnp.int16)
    wide = jnp.promote_types(x.dtype, jnp.float32)
    moved, start = points.astype(wide), x.astype(wide)
    return predicted, [library.distance(moved, start, norm) for norm in norms]


def _predictions(model: _Model) -> np.ndarray:
    """Returns the class `[B]` of each image; −1 where a logit is NaN."""
    parts = [np.zeros(0, np.int16)]
    for begin in range(0, len(model.x), model.batch_size):
        rows = np.arange(begin, min(begin + model.batch_size, len(model.x)))
        batch = model.x[filled(rows, model.batch_size)]
        predicted, _ = _look(batch, batch, logits_fn=model.logits_fn, norms=())
        parts.append(np.asarray(predicted)[: len(rows)])
    return np.concatenate(parts)


def _note(
    result: Robustness,
    work: _Work,
    model: _Model,
    rows: np.ndarray,
    points: np.ndarray,
    loss: np.ndarray,
) -> None:
    """Writes down what became of the images of a batch, looked at again."""
    threat, x = result.threats[work.threat], model.x[rows]
    places = filled(np.arange(len(rows)), model.batch_size)
    norms = tuple(dict.fromkeys((*result.norms, threat.norm.name)))
    looked = _look(points[places], x[places], logits_fn=model.logits_fn, norms=norms)
    predicted, *lengths = (np.asarray(each)[: len(rows)] for each in jax.tree.leaves(looked))
    silent = (predicted < 0) | np.isnan(loss)
    fooled = (predicted != result.labels[rows]) & ~silent
    if work.attack is not None:
        moved = lengths[norms.index(threat.norm.name)]
        _check_feasible(result.attacks[work.attack], threat, x, points, moved)
        new = fooled & (result.found_by[work.threat, rows] < 0)
        result.adversarial[work.threat][rows[new]] = points[new]
        result.found_by[work.threat, rows[new]] = work.attack
        result.seen_as[work.threat, rows[new]] = predicted[new]
        result.fooled[work.attack, work.threat, rows[fooled]] = True
        result.undecided[work.attack, work.threat, rows[silent]] = True
    for place in range(len(result.norms)):
        known = result.distance[place, rows[fooled]]
        result.distance[place, rows[fooled]] = np.minimum(known, lengths[place][fooled])


def _check_feasible(
    name: str, threat: Threat, x: np.ndarray, points: np.ndarray, moved: np.ndarray
) -> None:
    """Checks that an attack stayed within its threat model."""
    lower, upper = (np.asarray(bound, np.float64) for bound in threat.bounds)
    width = np.where(np.isfinite(upper - lower), upper - lower, 1.0)
    rounding = max(1e-6, 2 * float(jnp.finfo(x.dtype).eps))
    outside = (points < lower - rounding * width) | (points > upper + rounding * width)
    budget = float(threat.epsilon)
    features = 1 if threat.norm.name == "linf" else x[0].size
    slack = budget * SLACK + rounding * float(np.max(width)) * np.sqrt(features)
    if outside.any() or (moved > budget + slack).any():
        raise ValueError(
            f"attack {name!r} left the threat model {name_of(threat)}: it moved an image by "
            f"{float(np.max(moved)):.4g}, or out of its bounds"
        )


def _with_margin(fns: Mapping[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    """Returns the attacks that take a loss and were given none, with the margin loss."""
    others = {}
    for name, fn in fns.items():
        bound = fn.keywords if isinstance(fn, functools.partial) else {}
        if "loss_fn" in inspect.signature(fn).parameters and "loss_fn" not in bound:
            others[f"{name}, {SECOND_LOSS}"] = functools.partial(fn, loss_fn=losses.margin)
    return others


def _diagnosis(
    model: _Model, threat: Threat, attack_fn: Callable[..., Any], key: Key
) -> Diagnosis | None:
    """Returns signs of masked gradients on a few images, by PGD in the place of AutoAttack."""
    number = len(model.x)
    if not number:
        return None
    rows = np.unique(np.linspace(0, number - 1, min(number, NUM_DIAGNOSED)).astype(int))
    looked = _diagnosed(
        named_key(key, "diagnosis"),
        model.x[rows],
        model.labels[rows],
        threat,
        logits_fn=model.logits_fn,
        attack_fn=attack_fn if _auto_options(attack_fn) is None else library.pgd,
    )
    return jax.tree.map(np.asarray, looked)


@functools.partial(sharding.alone, static_argnames=("logits_fn", "attack_fn"))
def _diagnosed(key, x, labels, threat, *, logits_fn: LogitsFn, attack_fn: Callable[..., Any]):
    return library.diagnose(attack_fn, logits_fn, key, x, labels, threat=threat)
