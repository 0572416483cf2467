"""From attacks to transfer: surrogates, targets, controls of equal norm, first order."""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from halfway import losses
from halfway.attacks import AttackResult, Threat
from halfway.types import ApplyFn, Array, Key, LogitsFn, LossFn, Params

Attack = Callable[[LogitsFn, Key, Array, Array], AttackResult]
"""`(logits_fn, key, x, labels)` to a result: an attack with its options bound."""
Denominator = Literal["all", "target_correct", "both_correct"]
DENOMINATORS: tuple[Denominator, ...] = ("all", "target_correct", "both_correct")


_LEVELS = 1 << 23
"""How many values a uniform draw in float32 has."""


class Evaluation(NamedTuple):
    """One model on one set of points: attack loss `[..., B]` and correctness `[..., B]` bool."""

    loss: Array
    correct: Array


class Perturbed(NamedTuple):
    """Control points `[B, ...]`, and `[B]` whether their norms could be matched."""

    points: Array
    matched: Array


class TransferMatrix(NamedTuple):
    """K surrogates against M targets on the same B examples, outcomes kept for each example.

    Attributes:
      surrogate: by kind of point ("clean", "attack"): `[K, B]`, each surrogate on its own points.
      target: "clean" `[M, B]`; "attack", "noise" and "other_example" `[K, M, B]`.
      matched: by control, `[K, B]` bool.
      norm: `[K, B]`, l2 norm of the attack's perturbations.
    """

    surrogate: dict[str, Evaluation]
    target: dict[str, Evaluation]
    matched: dict[str, Array]
    norm: Array


class Rate(NamedTuple):
    """A success rate as counts `[K, M]`: `num_fooled` of `num_examples`."""

    num_fooled: Array
    num_examples: Array


def evaluate(
    logits_fn: LogitsFn, x: Array, labels: Array, *, loss_fn: LossFn = losses.margin
) -> Evaluation:
    """Returns attack loss and correctness of a model at points.

    Args:
      logits_fn: the model.
      x: `[B, ...]`.
      labels: `[B]`, clean.
      loss_fn: attack loss per example.
    """
    logits = logits_fn(x)
    return Evaluation(loss_fn(logits, labels), logits.argmax(-1) == labels)


def matched_noise(
    key: Key, x: Array, adversarial: Array, *, bounds: tuple[float, float] = (0.0, 1.0)
) -> Perturbed:
    """Returns random feasible signs on a random set of pixels, matched in l∞ and l2.

    With m the l∞ norm of an example's perturbation δ, ⌊‖δ‖²/m²⌋ random pixels move by ±m and one
    more by what is left of the l2 norm; where only one sign stays within bounds, it is taken.

    Args:
      key: consumed.
      x: `[B, ...]` within bounds.
      adversarial: `[B, ...]`, whose norms are matched example by example.
      bounds: of the box.

    Examples:
      >>> x = jnp.full((1, 6), 0.5)
      >>> adversarial = x + 0.125 * jnp.array([[1.0, -1.0, 1.0, 0.0, 0.0, 0.0]])
      >>> noise = transfer.matched_noise(jax.random.key(0), x, adversarial)
      >>> sorted(jnp.abs(noise.points - x)[0].tolist()), noise.matched.tolist()
      ([0.0, 0.0, 0.0, 0.125, 0.125, 0.125], [True])
    """
    low, high = bounds
    flat = x.reshape(x.shape[0], -1)
    delta = adversarial.reshape(flat.shape) - flat
    size = jnp.abs(delta).max(-1, keepdims=True)
    squared = (delta**2).sum(-1, keepdims=True)
    safe = jnp.where(size > 0, size, 1.0)
    count = jnp.floor(squared / safe**2)
    rest = jnp.sqrt(jnp.maximum(squared - count * safe**2, 0.0))

    key_sign, key_where = jax.random.split(key)
    up, down = flat + size <= high, flat - size >= low
    coin = jax.random.bernoulli(key_sign, shape=flat.shape)
    sign = jnp.where(up & (coin | ~down), 1.0, -1.0)
    # Pixels that can move in neither direction come last in the random order.
    draws = jax.random.uniform(key_where, flat.shape) * _LEVELS
    draws = jnp.where(up | down, draws.astype(jnp.int32), _LEVELS)
    first, next_one = _select(draws, count.astype(jnp.int32))
    step = jnp.where(first, size, jnp.where(next_one, rest, 0.0))
    movable = (up | down).sum(-1, keepdims=True)
    matched = (count + (rest > 1e-3 * safe) <= movable)[:, 0]
    points = jnp.clip(flat + sign * jnp.where(up | down, step, 0.0), low, high)
    return Perturbed(points.reshape(x.shape), matched)


def _select(draws: Array, count: Array) -> tuple[Array, Array]:
    """Returns masks `[B, N]`: of the `count` lowest draws, and of the one that follows.

    Among equal draws the first come first. The value of rank `count` is found by bisection: XLA's
    sort takes most of a transfer's time on a CPU.

    Args:
      draws: `[B, N]` integers in [0, `_LEVELS`].
      count: `[B, 1]`, at least 0; from N on there is no one that follows.
    """

    def halve(_, interval):
        low, high = interval
        middle = (low + high) // 2
        enough = (draws <= middle).sum(-1, keepdims=True) > count
        return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

    # The least value that more than `count` draws do not exceed; beyond all where there is none.
    ends = jnp.zeros_like(count), jnp.full_like(count, _LEVELS + 1)
    value, _ = lax.fori_loop(0, _LEVELS.bit_length(), halve, ends)
    equal, lower = draws == value, draws < value
    place = lower.sum(-1, keepdims=True) + jnp.cumsum(equal, -1) - 1
    return lower | (equal & (place < count)), equal & (place == count)


def other_example(
    key: Key, x: Array, adversarial: Array, *, bounds: tuple[float, float] = (0.0, 1.0)
) -> Perturbed:
    """Returns each example under another example's perturbation, rescaled to its own l2 norm.

    The perturbation is scaled up until what is left after clipping to the box has the norm of the
    example's own, as far as the box allows; l∞ is not matched (it can only be larger than needed).

    Args:
      key: consumed.
      x: `[B, ...]` within bounds, B at least 2.
      adversarial: `[B, ...]`.
      bounds: of the box.

    Raises:
      ValueError: if there is only one example.
    """
    low, high = bounds
    num_examples = x.shape[0]
    if num_examples < 2:
        raise ValueError(f"another example's perturbation needs two examples, got {num_examples}")
    flat = x.reshape(num_examples, -1)
    delta = adversarial.reshape(flat.shape) - flat
    shift = jax.random.randint(key, (), 1, num_examples)
    direction = jnp.roll(delta, shift, 0)
    norm = jnp.linalg.norm(delta, axis=-1, keepdims=True)

    def move(scale):
        return jnp.clip(flat + scale * direction, low, high)

    def halve(_, interval):
        small, large = interval
        middle = 0.5 * (small + large)
        short = jnp.linalg.norm(move(middle) - flat, axis=-1, keepdims=True) < norm
        return jnp.where(short, middle, small), jnp.where(short, large, middle)

    smallest = jnp.where(direction == 0, jnp.inf, jnp.abs(direction)).min(-1, keepdims=True)
    # At this scale every moving pixel has reached its bound.
    largest = jnp.where(jnp.isfinite(smallest), (high - low) / smallest, 0.0)
    # Scales beyond 1e4 only chase pixels that the attack hardly moved.
    interval = (jnp.zeros_like(norm), jnp.minimum(largest, 1e4))
    _, scale = lax.fori_loop(0, 40, halve, interval)
    points = move(scale)
    reached = jnp.linalg.norm(points - flat, axis=-1, keepdims=True)
    return Perturbed(points.reshape(x.shape), (reached >= 0.99 * norm)[:, 0])


def transfer_matrix(
    surrogate_fn: ApplyFn,
    surrogates: Params,
    target_fn: ApplyFn,
    targets: Params,
    key: Key,
    x: Array,
    labels: Array,
    *,
    attack: Attack,
    bounds: tuple[float, float] = (0.0, 1.0),
    loss_fn: LossFn = losses.margin,
) -> TransferMatrix:
    """Returns what attacks on each surrogate do to each target, beside controls of equal norm.

    Args:
      surrogate_fn: applies one surrogate's parameters.
      surrogates: leaves `[K, ...]`.
      target_fn: applies one target's parameters.
      targets: leaves `[M, ...]`.
      key: consumed; each surrogate gets its own.
      x: `[B, ...]`, clean.
      labels: `[B]`, clean.
      attack: with its options bound; sees the surrogate only.
      bounds: of the box, for the controls.
      loss_fn: attack loss that increases are measured in.
    """

    def at_targets(points):
        def one(params):
            return evaluate(lambda z: target_fn(params, z), points, labels, loss_fn=loss_fn)

        return jax.vmap(one)(targets)

    def row(key, params):
        key_attack, key_noise, key_other = jax.random.split(key, 3)

        def logits_fn(z):
            return surrogate_fn(params, z)

        adversarial = attack(logits_fn, key_attack, x, labels).adversarial
        controls = {
            "noise": matched_noise(key_noise, x, adversarial, bounds=bounds),
            "other_example": other_example(key_other, x, adversarial, bounds=bounds),
        }
        points = {"attack": adversarial} | {name: c.points for name, c in controls.items()}
        own = {
            name: evaluate(logits_fn, z, labels, loss_fn=loss_fn)
            for name, z in (("clean", x), ("attack", adversarial))
        }
        outcomes = {name: at_targets(z) for name, z in points.items()}
        norm = jnp.linalg.norm((adversarial - x).reshape(x.shape[0], -1), axis=-1)
        return own, outcomes, {name: c.matched for name, c in controls.items()}, norm

    num_surrogates = jax.tree.leaves(surrogates)[0].shape[0]
    keys = jax.random.split(key, num_surrogates)
    own, outcomes, matched, norm = jax.vmap(row)(keys, surrogates)
    return TransferMatrix(own, {"clean": at_targets(x)} | outcomes, matched, norm)


def increase(matrix: TransferMatrix, points: str = "attack") -> Array:
    """Returns `[K, M, B]` increases of the targets' attack loss from clean points to others.

    Args:
      matrix: outcomes.
      points: "attack", "noise" or "other_example".
    """
    return matrix.target[points].loss - matrix.target["clean"].loss[None]


def coefficient(matrix: TransferMatrix) -> Array:
    """Returns M_x `[K, M]`: the target's increase over the surrogate's, each summed over examples.

    Definition 1 in input space: F and G are minus the attack losses, the walk is the attack.

    Args:
      matrix: outcomes.

    Examples:
      >>> def seen(loss):
      ...     return transfer.Evaluation(jnp.array(loss), correct=jnp.array(loss) < 0)
      >>> matrix = transfer.TransferMatrix(  # one surrogate, two targets, two examples
      ...     surrogate={"clean": seen([[-1.0, -3.0]]), "attack": seen([[1.0, 1.0]])},
      ...     target={"clean": seen([[-1.0, -2.0], [-1.0, -1.0]]),
      ...             "attack": seen([[[1.0, -1.0], [-1.0, -1.0]]])},
      ...     matched={}, norm=jnp.ones((1, 2)))
      >>> print(transfer.coefficient(matrix))
      [[0.5 0. ]]
      >>> print(transfer.success(matrix, "target_correct").num_fooled)
      [[1 0]]
    """
    own = matrix.surrogate["attack"].loss - matrix.surrogate["clean"].loss
    return increase(matrix).sum(-1) / own.sum(-1)[:, None]


def success(matrix: TransferMatrix, denominator: Denominator, points: str = "attack") -> Rate:
    """Returns how many examples a target misclassifies, among those that the denominator counts.

    Args:
      matrix: outcomes.
      denominator: "all" examples, "target_correct": those the target classifies correctly when
        clean, or "both_correct": the surrogate too.
      points: "clean", "attack", "noise" or "other_example".

    Raises:
      ValueError: for another denominator.
    """
    if denominator not in DENOMINATORS:
        raise ValueError(f"denominator must be one of {DENOMINATORS}, got {denominator!r}")
    clean = matrix.target["clean"].correct[None]
    both = clean & matrix.surrogate["clean"].correct[:, None]
    counted = {"all": jnp.ones_like(both), "target_correct": clean, "both_correct": both}
    eligible = jnp.broadcast_to(counted[denominator], both.shape)
    correct = matrix.target[points].correct
    fooled = ~(correct[None] if points == "clean" else correct)
    return Rate((eligible & fooled).sum(-1), eligible.sum(-1))


class FirstOrder(NamedTuple):
    """P5 for each example of one surrogate and one target, all `[B]`.

    Attributes:
      score: ⟨h_B, s(h_A)⟩, loss per unit of budget.
      tau: score / ‖h_B‖_q in [-1, 1]; NaN where h_B = 0.
      predicted: ⟨h_B, Δ⟩ for the displacement Δ of one steepest step on A, clipped to the box.
      actual: what that displacement adds to the target's attack loss.
    """

    score: Array
    tau: Array
    predicted: Array
    actual: Array


def first_order(
    surrogate: LogitsFn,
    target: LogitsFn,
    x: Array,
    labels: Array,
    *,
    threat: Threat,
    loss_fn: LossFn = losses.margin,
) -> FirstOrder:
    """Returns the first-order prediction of transfer and what one step does (P5).

    `Δ(attack loss of B) = ε⟨h_B, s(h_A)⟩ + O(ε²)`, h the input gradient of the attack loss and s
    the steepest direction of the threat model. Exact where the loss is affine in x.

    Args:
      surrogate: A.
      target: B.
      x: `[B, ...]`, clean.
      labels: `[B]`, clean.
      threat: gives s, the dual norm and the size of the step.
      loss_fn: attack loss.

    Examples:
      >>> a, b = jnp.array([[1.0, -1.0], [1.0, -1.0]]), jnp.array([[1.0, -1.0], [-1.0, 1.0]])
      >>> x, labels = jnp.full((1, 2), 0.5), jnp.zeros(1, jnp.int32)
      >>> found = transfer.first_order(
      ...     lambda x: x @ a, lambda x: x @ b, x, labels, threat=attacks.linf(0.1))
      >>> print(found.tau)  # what B gains in one pixel it loses in the other
      [0.]
    """

    def gradient(logits_fn):
        return jax.grad(lambda z: loss_fn(logits_fn(z), labels).sum())(x)

    def inner(u, v):
        return (u * v).reshape(x.shape[0], -1).sum(-1)

    h_target = gradient(target)
    direction = threat.steepest(gradient(surrogate))
    score = inner(h_target, direction)
    dual = threat.dual_norm(h_target)
    tau = jnp.where(dual > 0, score / jnp.where(dual > 0, dual, 1.0), jnp.nan)
    stepped = threat.project(x + threat.radius(x) * direction, x)
    before, after = (loss_fn(target(z), labels) for z in (x, stepped))
    return FirstOrder(score, tau, inner(h_target, stepped - x), after - before)


def summarize(matrix: TransferMatrix, points: str = "attack") -> Mapping[str, Array]:
    """Returns the sums that a table of transfer needs, `[K, M]` each.

    Args:
      matrix: outcomes.
      points: "attack", "noise", "other_example" or "clean".

    Returns:
      `increase` of the target's attack loss summed over examples, and for each denominator
      `num_fooled.NAME` and `num_examples.NAME`.
    """
    sums = {"increase": increase(matrix, points).sum(-1)} if points != "clean" else {}
    for name in DENOMINATORS:
        rate = success(matrix, name, points)
        sums |= {f"num_fooled.{name}": rate.num_fooled, f"num_examples.{name}": rate.num_examples}
    return sums
