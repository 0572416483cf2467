"""Attacks on models whose transfer is known: P5 and P7 through the code that attacks networks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from jax.typing import ArrayLike

from halfway import attacks, losses, meeting, sharding, transfer
from halfway.data import synthetic
from halfway.keys import named_key
from halfway.lab.measurements.context import Context
from halfway.lab.measurements.transfer import both_directions
from halfway.lab.study.records import Measurement
from halfway.types import Array, Key, LogitsFn, Params

DIMENSION, SIGNAL, NOISE = 20, 1.0, 1.0
HALF_SIZES = (26, 32, 45, 80, 200, 400)
"""n of each half, n − d ≥ 6: where transfer is a function of generalization alone."""
NUM_REPLICATES = 1500
"""Pairs of halves of each n, at least; every pair of the run has as many of them. Where n is near d
M_x is known to .006 by them; with a third of these one run in five could not tell it from .03."""
TIME = 0.5
"""An attack's budget over the norm of its input gradient."""
TARGETS = ("other", "own")
"""Whose loss an attack on a model moves."""
_NUM_POINTS = 2
"""Fresh examples that models are attacked on; what is affine is the same at all of them."""


def num_each(num_replicates: int, num_pairs: int) -> int:
    """Returns how many replicates each pair of a run has, so that all have so many at least.

    A pair of the run, the unit of all tests, stands for its replicates: sums over them.

    Args:
      num_replicates: wanted of all pairs together.
      num_pairs: P.
    """
    return -(-num_replicates // num_pairs)


def sum_each(values: ArrayLike, num_pairs: int) -> np.ndarray:
    """Returns sums `[P, ...]` over the replicates of each pair, in float64.

    Args:
      values: `[P R, ...]`, those of the first pair first.
      num_pairs: P.
    """
    columns = np.asarray(values, np.float64)
    return columns.reshape(num_pairs, -1, *columns.shape[1:]).sum(1)


def two_logits(weights: Params, x: Array) -> Array:
    """Returns logits `[B, 2]` ±⟨w, x⟩ of a linear score: its sign is the class.

    Args:
      weights: `[d]`.
      x: `[B, d]`.
    """
    score = x @ weights
    return jnp.stack([-score, score], -1)


def flow(logits_fn: LogitsFn, key: Key, x: Array, labels: Array) -> attacks.AttackResult:
    """Returns where PGD in l2 ends on a budget of `TIME` times the norm of the input gradient.

    So the surrogate moves the target by `TIME` ⟨h_A, h_B⟩ where the attack loss is affine, and M_x,
    a ratio of sums over models, is μ_x.

    Args:
      logits_fn: of the surrogate.
      key: consumed.
      x: `[B, d]`.
      labels: `[B]`.
    """
    gradient = jax.grad(lambda z: losses.margin(logits_fn(z), labels).sum())(x)
    threat = attacks.l2(TIME * jnp.linalg.norm(gradient, axis=-1), (-jnp.inf, jnp.inf))
    return attacks.pgd(logits_fn, key, x, labels, threat=threat, loss_fn=losses.margin)


@sharding.jit
def fit(keys: Key, num_examples: Array) -> tuple[Array, Array]:
    """Returns least squares on the halves of each pair `[R, 2, d]`, and w* `[R, d]`.

    Args:
      keys: `[R]`, consumed.
      num_examples: n of each half, from d to the largest of `HALF_SIZES`.
    """
    used = jnp.arange(max(HALF_SIZES)) < num_examples

    def half(law: synthetic.LinearRegression, key: Key) -> Array:
        x, y = law.sample(key, max(HALF_SIZES))
        return meeting.minimum_norm_fit(jnp.where(used[:, None], x, 0), jnp.where(used, y, 0))

    def pair(key):
        key_law, key_halves = jax.random.split(key)
        law = synthetic.linear_regression(key_law, DIMENSION, signal=SIGNAL, noise=NOISE)
        return jax.vmap(functools.partial(half, law))(jax.random.split(key_halves)), law.optimum

    with jax.default_matmul_precision("highest"):
        return meeting.map_replicates(pair, keys, at_once=50)


@sharding.jit
def attack(keys: Key, weights: Array) -> tuple[Array, Array]:
    """Returns `[R, 2]` what attacks and gradients say of `TARGETS`, both directions summed.

    Increases of the other's and of the own margin loss under the attack `flow`, and ⟨h_A, h_B⟩ and
    ‖h_A‖² as `transfer.first_order` has them.

    Args:
      keys: `[R]`, consumed.
      weights: `[R, 2, d]`.
    """

    def pair(member):
        key, weights = member
        key_x, key_attack = jax.random.split(key)
        x = jax.random.normal(key_x, (_NUM_POINTS, DIMENSION))
        labels = jnp.arange(_NUM_POINTS) % 2
        matrix = transfer.transfer_matrix(
            two_logits, weights, two_logits, weights, key_attack, x, labels, attack=flow
        )
        increase = transfer.increase(matrix).sum(-1)

        def product(a, b):
            """⟨h_A, h_B⟩ as the score ⟨h_B, h_A/‖h_A‖⟩ times ‖h_A‖."""
            surrogate, target = (functools.partial(two_logits, weights[side]) for side in (a, b))
            threat = attacks.l2(1.0, (-jnp.inf, jnp.inf))
            score, norm = (
                transfer.first_order(surrogate, model, x, labels, threat=threat).score
                for model in (target, surrogate)
            )
            return (score * norm).sum()

        products = jnp.array([[product(a, b) for b in range(2)] for a in range(2)])
        return tuple(
            jnp.stack([both_directions(values, target) for target in TARGETS])
            for values in (increase, products)
        )

    with jax.default_matmul_precision("highest"):
        return sharding.spread(pair)((keys, weights))


def _measure(context: Context) -> xr.Dataset:
    """Returns transfer and excess risk of linear models on linear-Gaussian data.

    Sums over the replicates of a pair: `risk` (pair, num_examples) of both halves' models over s²;
    `increase` and `product` (pair, num_examples, target), see `attack`; and `num_replicates`, of a
    pair. `exact` (num_examples) is M_x by P7. No population is read: the condition says how many
    pairs there are, and where this is stored.
    """
    num_pairs = context.condition.num_pairs
    number = num_each(NUM_REPLICATES, num_pairs)
    shape = len(HALF_SIZES), num_pairs * number
    keys = jax.random.split(named_key(context.key, "fit"), shape)
    fits = [fit(*group) for group in zip(keys, jnp.array(HALF_SIZES), strict=True)]
    weights, optima = (jnp.stack(values) for values in zip(*fits, strict=True))
    keys = jax.random.split(named_key(context.key, "attack"), shape).ravel()
    increase, product = (
        sum_each(values.reshape(*shape, 2).swapaxes(0, 1), num_pairs)
        for values in attack(keys, weights.reshape(-1, 2, DIMENSION))
    )
    distance = ((weights - optima[:, :, None]) ** 2).sum(-1).mean(-1)
    exact = meeting.linear_gaussian(np.array(HALF_SIZES), DIMENSION, SIGNAL, NOISE).coefficient
    cells = "pair", "num_examples"
    return context.dataset(
        {
            "risk": (cells, sum_each(distance.T, num_pairs) / SIGNAL),
            "increase": ((*cells, "target"), increase),
            "product": ((*cells, "target"), product),
            "num_replicates": ((), number),
            "exact": (("num_examples",), exact),
        },
        num_examples=HALF_SIZES,
        target=TARGETS,
    )


LINEAR_GAUSSIAN = Measurement("linear_gaussian", _measure)
