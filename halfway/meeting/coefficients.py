"""Meeting coefficients and alignment, the path identity and the ghost half (D1, D2, P1, P2).

Everything is a function of arrays or of a `loss_fn(params)`, and works under `jit`, `vmap` and
`grad`.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import optax

from halfway.types import Array, Key, Params

UNDEFINED_BELOW = 1e-3
"""The coefficient of one pair is undefined where its progress is a smaller share of F(z_0)."""
Rule = Literal["trapezoid", "simpson"]


class Coefficient(NamedTuple):
    """The meeting coefficient of a population of walks.

    Attributes:
      estimate: scalar, the ratio of sums M = Σ_p num_p / Σ_p den_p.
      numerators: `[P]`, G(z_0) - G(z_T): descent of the landscape that was not followed.
      denominators: `[P]`, F(z_0) - F(z_T): descent of the landscape that was followed.
      per_pair: `[P]`, the ratio of each pair, for figures only; NaN where undefined.
      num_undefined: scalar int, the number of pairs with den_p < 1e-3 |F(z_0)|. They stay in
        `estimate`.
    """

    estimate: Array
    numerators: Array
    denominators: Array
    per_pair: Array
    num_undefined: Array


def coefficient(followed: Array, other: Array) -> Coefficient:
    """Returns the meeting coefficient from landscape values along walks (D1).

    `M(F→G) = Σ_p (G(z_0) − G(z_T)) / Σ_p (F(z_0) − F(z_T))`.

    Args:
      followed: `[P, T]`, the values of F, the landscape that each walk followed, at the points of
        the walk. For learning the first value is that of the best constant predictor, not of the
        random initialization.
      other: `[P, T]`, the values of G at the same points.

    Examples:
      >>> followed = jnp.array([[1.0, 0.5, 0.0], [1.0, 0.25, 0.0]])  # two walks
      >>> other = jnp.array([[1.0, 0.75, 0.5], [1.0, 1.0, 0.75]])
      >>> meets = meeting.coefficient(followed, other)
      >>> print(meets.estimate, meets.per_pair)
      0.375 [0.5  0.25]
    """
    numerators = other[:, 0] - other[:, -1]
    denominators = followed[:, 0] - followed[:, -1]
    undefined = denominators < UNDEFINED_BELOW * jnp.abs(followed[:, 0])
    per_pair = jnp.where(undefined, jnp.nan, numerators / jnp.where(undefined, 1.0, denominators))
    return Coefficient(
        numerators.sum() / denominators.sum(),
        numerators,
        denominators,
        per_pair,
        undefined.sum(),
    )


def constant_predictor(labels: Array, mask: Array, num_classes: int) -> Array:
    """Returns logits `[C]` of the best constant predictor: the log class frequencies of a sample.

    It minimizes cross-entropy and Brier score among constants, and its argmax is the majority
    class, which minimizes error. A class that does not occur has -inf.

    Args:
      labels: `[N]` integers in [0, C).
      mask: `[N]` bool, the examples that count.
      num_classes: C, the number of classes.

    Examples:
      >>> logits = meeting.constant_predictor(jnp.array([0, 0, 0, 1]), jnp.ones(4, bool), 2)
      >>> [f"{share:.2f}" for share in jnp.exp(logits)]
      ['0.75', '0.25']
    """
    counts = (jax.nn.one_hot(labels, num_classes) * mask[:, None]).sum(0)
    return jnp.log(counts / mask.sum())


def ceiling(noise_rate: Array, num_classes: int, majority_share: Array) -> Array:
    """Returns the largest expected M_θ in error.

    A model that fits A and predicts the clean labels of B without error reaches
    `(1 − ρ)(1 − 1/C) / (1 − m_A)`, about 1 − ρ.

    Args:
      noise_rate: ρ in [0, 1], the label-noise rate of B.
      num_classes: C, the number of classes.
      majority_share: m_A in (0, 1), the share of A's majority class.

    Examples:
      >>> f"{meeting.ceiling(0.4, 10, 0.1):.2f}"  # classes as frequent as each other: 1 − ρ
      '0.60'
    """
    return (1 - noise_rate) * (1 - 1 / num_classes) / (1 - majority_share)


def local_coefficient(followed: Params, other: Params) -> Array:
    """Returns μ = E⟨u, v⟩ / E⟨u, u⟩, a ratio of means over replicates (D2).

    Args:
      followed: u, a pytree or array with replicates on the leading axis of every leaf.
      other: v, of the same shapes.

    Examples:
      >>> u, v = jnp.array([[1.0, 0.0], [0.0, 2.0]]), jnp.array([[0.5, 3.0], [1.0, 1.0]])
      >>> print(meeting.local_coefficient(u, v))  # (0.5 + 2) / (1 + 4)
      0.5
    """
    return _mean_product(followed, other) / _mean_product(followed, followed)


def alignment(followed: Params, other: Params) -> Array:
    """Returns E⟨u, v⟩ / √(E‖u‖² E‖v‖²) over replicates, in [-1, 1] (D2).

    Args:
      followed: u, a pytree or array with replicates on the leading axis of every leaf.
      other: v, of the same shapes.
    """
    norms = _mean_product(followed, followed) * _mean_product(other, other)
    return _mean_product(followed, other) / jnp.sqrt(norms)


def _mean_product(u: Params, v: Params) -> Array:
    """Returns the mean inner product over replicates."""
    return jnp.asarray(jax.vmap(optax.tree.vdot)(u, v)).mean()


class PathIdentity(NamedTuple):
    """The path identity P1 on a recorded walk.

    Attributes:
      drop: scalar, G(z_0) - G(z_T).
      descents: `[T-1]`, −∫⟨∇G, Δ_t⟩ of each step by quadrature; their sum is close to `drop`.
      residual: scalar, |Σ descents − drop|.
    """

    drop: Array
    descents: Array
    residual: Array


def path_identity(
    loss_fn: Callable[[Params], Array],
    walk: Params,
    *,
    num_subdivisions: int = 1,
    rule: Rule = "trapezoid",
) -> PathIdentity:
    """Returns the descent of a landscape along a polyline, step by step, with P1's residual.

    `G(z_0) − G(z_T) = −Σ_t ∫_0^1 ⟨∇G(z_t + sΔ_t), Δ_t⟩ ds` (P1), each integral by quadrature on
    m parts. For smooth G the residual falls as 1/m² by the trapezoid rule (m + 1 slopes a step), as
    1/m⁴ by Simpson's (2m + 1); for ReLU networks no rate holds. With F and G on the same walk, M is
    the mean of the local coefficients `descents_G / descents_F` weighted by `descents_F`.

    Args:
      loss_fn: the landscape G, a function of one point.
      walk: the points z_0, ..., z_{T-1}, leaves `[T, ...]`.
      num_subdivisions: m, the number of parts of each step; static.
      rule: "trapezoid", or "simpson", which takes the middle of each part too.

    Raises:
      ValueError: if `num_subdivisions` is below 1, the walk has fewer than two points, or there is
        no such rule.

    Examples:
      >>> walk = jnp.array([[2.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
      >>> identity = meeting.path_identity(lambda z: (z**2).sum(), walk)
      >>> print(identity.drop, identity.descents, identity.residual)
      4.0 [2. 2.] 0.0
    """
    if num_subdivisions < 1:
        raise ValueError(f"num_subdivisions must be at least 1, got {num_subdivisions}")
    if jax.tree.leaves(walk)[0].shape[0] < 2:
        raise ValueError("a walk has at least two points, got one")
    if rule not in get_args(Rule):
        raise ValueError(f"rule must be one of {get_args(Rule)}, got {rule!r}")
    starts = jax.tree.map(lambda leaf: leaf[:-1], walk)
    steps = jax.tree.map(lambda leaf: leaf[1:] - leaf[:-1], walk)
    part = (1 / 2, 1 / 2) if rule == "trapezoid" else (1 / 6, 4 / 6, 1 / 6)
    inner = len(part) - 1
    places = jnp.linspace(0.0, 1.0, inner * num_subdivisions + 1)
    weights = jnp.zeros_like(places)
    for i, weight in enumerate(part):
        positions = slice(i, i + inner * num_subdivisions, inner)
        weights = weights.at[positions].add(weight / num_subdivisions)

    def descent(start_and_step):
        start, step = start_and_step

        def slope(s):
            point = jax.tree.map(lambda a, d: a + s * d, start, step)
            return jax.jvp(loss_fn, (point,), (step,))[1]

        return -jnp.dot(weights, jax.lax.map(slope, places))

    descents = jax.lax.map(descent, (starts, steps))
    ends = [jax.tree.map(lambda leaf, t=t: leaf[t], walk) for t in (0, -1)]
    drop = loss_fn(ends[0]) - loss_fn(ends[1])
    return PathIdentity(drop, descents, jnp.abs(descents.sum() - drop))


def symmetric_gap(own_losses: Array, other_losses: Array) -> Array:
    """Returns the ghost-half estimate of the generalization gap of each pair (P2).

    `½[L_B(θ_A) + L_A(θ_B) − L_A(θ_A) − L_B(θ_B)]`. The other half is a fresh sample, so the mean
    of the estimate is exactly the expected gap at n, without a test set.

    Args:
      own_losses: `[..., 2]`, L_A(θ_A) and L_B(θ_B).
      other_losses: `[..., 2]`, L_B(θ_A) and L_A(θ_B).

    Returns:
      `[...]`.

    Examples:
      >>> own, other = jnp.array([0.125, 0.0]), jnp.array([0.375, 0.5])
      >>> print(meeting.symmetric_gap(own, other))
      0.375
    """
    return (other_losses - own_losses).mean(-1)


class SplitNull(NamedTuple):
    """L_A − L_B under uniform random splits of one set of losses.

    Attributes:
      differences: `[R]`, L_A − L_B of each split.
      variance: scalar, the exact variance 4 s²/N over all splits; the mean is 0.
    """

    differences: Array
    variance: Array


def split_null(key: Key, losses: Array, *, num_splits: int) -> SplitNull:
    """Returns the distribution of L_A − L_B where the model depends on neither half (P2).

    Over uniform splits of N examples into equal halves the difference of means has mean 0 and
    variance `4 s²/N`, s² the sample variance (over N − 1).

    Args:
      key: a PRNG key, which is consumed.
      losses: `[N]` losses of examples, N even.
      num_splits: R, the number of splits.

    Raises:
      ValueError: if N is odd.
    """
    size = losses.shape[0]
    if size % 2:
        raise ValueError(f"equal halves need an even number of losses, got {size}")

    def difference(key):
        shuffled = jax.random.permutation(key, losses)
        return shuffled[: size // 2].mean() - shuffled[size // 2 :].mean()

    differences = jax.lax.map(difference, jax.random.split(key, num_splits), batch_size=256)
    return SplitNull(differences, 4 * losses.var(ddof=1) / size)
