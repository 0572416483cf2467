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
from halfway import losses, stats
from halfway.attacks import AttackResult, Diagnosis, Threat, door
from halfway.attacks.auto.staged import filled
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
    "predictions",
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
    saturates, attacks that take a loss are run with the margin loss too.

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
        door.check(logits_fn, jnp.asarray(x), jnp.asarray(y), threat)
        if np.ndim(threat.epsilon):
            raise ValueError(f"a threat model of one budget is needed, got {threat.epsilon}")
    key = jax.random.key(0) if key is None else key
    return _steps(logits_fn, x, y, threats, fns, key, curves, max(1, batch_size), step)


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


def _plan(threats: tuple[Threat, ...], num_attacks: int, norms: Sequence[str]) -> tuple[_Work, ...]:
    """Returns the pieces of work in order: attack by attack, budgets of a norm ascending."""
    order = sorted(range(len(threats)), key=lambda place: float(threats[place].epsilon))
    works = []
    for attack in range(num_attacks):
        for place in range(len(threats)):
            smaller = [
                other
                for other in order[: order.index(place)]
                if _is_alike(threats[other], threats[place])
            ]
            works.append(_Work(attack, place, smaller[-1] if smaller else None))
    works.sort(key=lambda work: (work.attack, float(threats[work.threat].epsilon), work.threat))
    names = [threat.norm.name for threat in threats]
    return (*works, *(_Work(None, names.index(norm), None) for norm in norms))


def _is_alike(threat: Threat, other: Threat) -> bool:
    """Returns whether two threat models differ in the budget alone; with a mask they do not."""
    if threat.norm != other.norm or threat.mask is not None or other.mask is not None:
        return False
    return all(map(np.array_equal, threat.bounds, other.bounds))


def _steps(
    logits_fn: LogitsFn,
    x: np.ndarray,
    labels: np.ndarray,
    threats: tuple[Threat, ...],
    fns: dict[str, Callable[..., AttackResult]],
    key: Key,
    curves: bool,
    batch_size: int,
    step: Step | None,
) -> Iterator[Step]:
    """Yields as `evaluate_steps`, of what has been checked."""
    number = len(x)
    size = max(1, min(batch_size, number))
    diagnosis = _diagnosis(logits_fn, x, labels, threats[0], next(iter(fns.values())), key)
    if diagnosis is not None and float(diagnosis.saturated) > ZERO_GRADIENT:
        fns = {**fns, **_with_margin(fns)}
    norms = tuple(
        dict.fromkeys(threat.norm.name for threat in threats if threat.mask is None and curves)
    )
    works = _plan(threats, len(fns), norms)
    if step is None:
        predicted = predictions(logits_fn, x, size)
        right = predicted == labels
        shape = len(fns), len(threats), number
        result = Robustness(
            attacks=tuple(fns),
            threats=threats,
            labels=labels,
            predicted=predicted,
            fooled=np.zeros(shape, bool),
            undecided=np.zeros(shape, bool),
            adversarial=np.broadcast_to(x, (len(threats), *x.shape)).copy(),
            found_by=np.full(shape[1:], -1, np.int8),
            norms=norms,
            distance=np.where(right, np.inf, np.zeros((len(norms), number))),
            diagnosis=diagnosis,
        )
        step = Step(result, 0, _begin(result, works[0]), None, 0.0, "the images as they are")
    else:
        step = step._replace(robustness=_copied(step.robustness)._replace(diagnosis=diagnosis))
    yield step
    result, progress, left = step.robustness, step.progress, step.left
    for place in range(step.place, len(works)):
        work = works[place]
        if place > step.place:
            progress, left = None, _begin(result, work)
        _carry(result, work)
        for rows, reached, inner in _run(
            work, logits_fn, x, result, fns, key, size, left, progress
        ):
            words = _words(result, work)
            if reached is None:
                words += f": {len(rows)} left"
            elif reached.stage >= 0:
                fn = fns[result.attacks[work.attack or 0]]
                stage = Plan(**(_auto_options(fn) or {})).stages[reached.stage]
                words += f", stage {stage}, class {1 + reached.rank}: {len(reached.left)} left"
            yield Step(result, place, rows, reached, (place + inner) / len(works), words)
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


def _run(
    work: _Work,
    logits_fn: LogitsFn,
    x: np.ndarray,
    result: Robustness,
    fns: Mapping[str, Callable[..., AttackResult]],
    key: Key,
    size: int,
    left: np.ndarray,
    progress: library.Progress | None,
) -> Iterator[tuple[np.ndarray, library.Progress | None, float]]:
    """Yields (rows left, progress of AutoAttack, share done) after each batch of a piece."""
    labels, threat = result.labels, result.threats[work.threat]
    total = max(1, len(left))
    name = "" if work.attack is None else result.attacks[work.attack]
    key = named_key(key, _words(result, work))
    options = None if work.attack is None else _auto_options(fns[name])
    if options is not None:
        if not len(left):
            return
        num_stages = len(Plan(**options).stages)
        for reached in library.auto_attack_steps(
            logits_fn,
            key,
            x[left],  # pyright: ignore[reportArgumentType]
            labels[left],  # pyright: ignore[reportArgumentType]
            threat=threat,
            chunk_size=size,
            progress=progress,
            **options,
        ):
            progress = reached
            inner = (1 + reached.stage - len(reached.left) / total) / (1 + num_stages)
            yield left, reached, min(max(inner, 0.0), 1.0)
        assert progress is not None
        points, loss = (
            np.asarray(each) for each in (progress.result.adversarial, progress.result.loss)
        )
        for begin in range(0, total, size):
            part = slice(begin, begin + size)
            _note(result, work, logits_fn, x, left[part], points[part], loss[part], size)
        yield left[:0], None, 1.0
        return
    if work.attack is None:
        run = functools.partial(_nearest, logits_fn=logits_fn, norm=threat.norm.name)
    else:
        run = functools.partial(_attacked, logits_fn=logits_fn, attack_fn=fns[name])
    while len(left):
        rows, left = left[:size], left[size:]
        places = filled(rows, size)
        batch_key = jax.random.fold_in(key, int(rows[0]))
        points, loss = (
            np.asarray(each)[: len(rows)]
            for each in run(batch_key, x[places], labels[places], threat)
        )
        _note(result, work, logits_fn, x, rows, points, loss, size)
        yield left, None, 1 - len(left) / total


def _auto_options(fn: Callable[..., Any]) -> dict[str, Any] | None:
    """Returns the options of AutoAttack but for its chunks; None for other attacks."""
    inner = fn.func if isinstance(fn, functools.partial) else fn
    if inner is not library.auto_attack:
        return None
    options = dict(fn.keywords) if isinstance(fn, functools.partial) else {}
    options.pop("chunk_size", None)
    return options


@functools.partial(jax.jit, static_argnames=("logits_fn", "attack_fn"))
def _attacked(key, x, labels, threat, *, logits_fn: LogitsFn, attack_fn: Callable[..., Any]):
    made = attack_fn(logits_fn, key, x, labels, threat=threat)
    return made.adversarial, made.loss


@functools.partial(jax.jit, static_argnames=("logits_fn", "norm"))
def _nearest(key, x, labels, threat, *, logits_fn: LogitsFn, norm: str):
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


@functools.partial(jax.jit, static_argnames=("logits_fn", "norms"))
def _look(points, x, *, logits_fn: LogitsFn, norms: tuple[str, ...]):
    """Returns the class of each point, −1 where a logit is NaN, and lengths of its change."""
    logits = logits_fn(points)
    predicted = jnp.where(jnp.isnan(logits).any(-1), -1, logits.argmax(-1)).astype(jnp.int16)
    wide = jnp.promote_types(x.dtype, jnp.float32)
    moved, start = points.astype(wide), x.astype(wide)
    return predicted, [library.distance(moved, start, norm) for norm in norms]


def predictions(logits_fn: LogitsFn, x: np.ndarray, size: int) -> np.ndarray:
    """Returns the class `[B]` of each image; −1 where a logit is NaN.

    Args:
      logits_fn: of the model.
      x: `[B, ...]`.
      size: of a batch.
    """
    parts = [np.zeros(0, np.int16)]
    for begin in range(0, len(x), size):
        rows = np.arange(begin, min(begin + size, len(x)))
        batch = x[filled(rows, size)]
        predicted, _ = _look(batch, batch, logits_fn=logits_fn, norms=())
        parts.append(np.asarray(predicted)[: len(rows)])
    return np.concatenate(parts)


def _note(
    result: Robustness,
    work: _Work,
    logits_fn: LogitsFn,
    x: np.ndarray,
    rows: np.ndarray,
    points: np.ndarray,
    loss: np.ndarray,
    size: int,
) -> None:
    """Writes down what became of at most `size` images, looked at again."""
    threat = result.threats[work.threat]
    places = filled(np.arange(len(rows)), size)
    norms = tuple(dict.fromkeys((*result.norms, threat.norm.name)))
    looked = _look(points[places], x[rows][places], logits_fn=logits_fn, norms=norms)
    predicted, *lengths = (np.asarray(each)[: len(rows)] for each in jax.tree.leaves(looked))
    silent = (predicted < 0) | np.isnan(loss)
    fooled = (predicted != result.labels[rows]) & ~silent
    if work.attack is not None:
        moved = lengths[norms.index(threat.norm.name)]
        _check_feasible(result.attacks[work.attack], threat, x[rows], points, moved)
        new = fooled & (result.found_by[work.threat, rows] < 0)
        result.adversarial[work.threat][rows[new]] = points[new]
        result.found_by[work.threat, rows[new]] = work.attack
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
    slack = budget * SLACK + rounding * float(np.max(width)) * np.sqrt(x[0].size)
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
    logits_fn: LogitsFn,
    x: np.ndarray,
    labels: np.ndarray,
    threat: Threat,
    attack_fn: Callable[..., Any],
    key: Key,
) -> Diagnosis | None:
    """Returns signs of masked gradients on a few images, by PGD in the place of AutoAttack."""
    rows = np.unique(np.linspace(0, len(x) - 1, min(len(x), NUM_DIAGNOSED)).astype(int))
    if not len(x):
        return None
    probe = library.pgd if _auto_options(attack_fn) is not None else attack_fn
    looked = _diagnosed(
        named_key(key, "diagnosis"),
        x[rows],
        labels[rows],
        threat,
        logits_fn=logits_fn,
        attack_fn=probe,
    )
    return jax.tree.map(np.asarray, looked)


@functools.partial(jax.jit, static_argnames=("logits_fn", "attack_fn"))
def _diagnosed(key, x, labels, threat, *, logits_fn: LogitsFn, attack_fn: Callable[..., Any]):
    return library.diagnose(attack_fn, logits_fn, key, x, labels, threat=threat)
