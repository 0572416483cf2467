"""The instrument of T3 on models whose transfer is known: P7 through the code that attacks."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from halfway import attacks, losses, meeting, sharding, transfer
from halfway.data import Split, synthetic
from halfway.lab.config.settings import RunConfig
from halfway.lab.study import tables
from halfway.lab.study.protocol import Measured, Measurement
from halfway.populations import Population
from halfway.types import Array, Key, LogitsFn, Params

DIMENSION, SIGNAL, NOISE = 20, 1.0, 1.0
SAMPLES = (26, 32, 45, 80, 200, 400)
"""n of each half, n − d ≥ 6: where transfer is a function of generalization alone."""
NUM_REPLICATES = 500
"""Pairs of halves of each n."""
TIME = 0.5
"""An attack's budget over the norm of its input gradient."""
_NUM_POINTS = 2
"""Fresh examples that models are attacked on; what is affine is the same at all of them."""


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
    """
    gradient = jax.grad(lambda z: losses.margin(logits_fn(z), labels).sum())(x)
    threat = attacks.l2(TIME * jnp.linalg.norm(gradient, axis=-1), (-jnp.inf, jnp.inf))
    return attacks.pgd(logits_fn, key, x, labels, threat=threat, loss_fn=losses.margin)


@sharding.jit
def fit(keys: Key, num_examples: Array) -> tuple[Array, Array]:
    """Returns least squares on the halves of each pair `[R, 2, d]`, and w* `[R, d]`.

    Args:
      keys: `[R]`, consumed.
      num_examples: n of each half, from d to the largest of `SAMPLES`.
    """
    used = jnp.arange(max(SAMPLES)) < num_examples

    def half(law: synthetic.LinearRegression, key: Key) -> Array:
        x, y = law.sample(key, max(SAMPLES))
        return meeting.minimum_norm_fit(jnp.where(used[:, None], x, 0), jnp.where(used, y, 0))

    def one(key):
        key_law, key_halves = jax.random.split(key)
        law = synthetic.linear_regression(key_law, DIMENSION, signal=SIGNAL, noise=NOISE)
        return jax.vmap(functools.partial(half, law))(jax.random.split(key_halves)), law.optimum

    with jax.default_matmul_precision("highest"):
        return jax.lax.map(one, keys, batch_size=50)


@sharding.jit
def attack(keys: Key, weights: Array) -> tuple[Array, Array]:
    """Returns `[R]` terms of a pair, both directions summed, from attacks and from gradients.

    Increases of the other's and of the own margin loss under the attack `flow`, and ⟨h_A, h_B⟩ over
    ‖h_A‖² as `transfer.first_order` has them: `[R, 2]` each, numerators and denominators.

    Args:
      keys: `[R]`, consumed.
      weights: `[R, 2, d]`.
    """

    def pair(member):
        key, both = member
        key_x, key_attack = jax.random.split(key)
        x = jax.random.normal(key_x, (_NUM_POINTS, DIMENSION))
        labels = jnp.arange(_NUM_POINTS) % 2
        matrix = transfer.transfer_matrix(
            two_logits, both, two_logits, both, key_attack, x, labels, attack=flow
        )
        moved = transfer.increase(matrix).sum(-1)

        def product(a, b):
            """⟨h_A, h_B⟩ as the score ⟨h_B, h_A/‖h_A‖⟩ times ‖h_A‖."""
            own, other = (functools.partial(two_logits, both[side]) for side in (a, b))
            threat = attacks.l2(1.0, (-jnp.inf, jnp.inf))
            score, norm = (
                transfer.first_order(own, one, x, labels, threat=threat).score
                for one in (other, own)
            )
            return (score * norm).sum()

        gradients = jnp.stack([product(0, 1) + product(1, 0), product(0, 0) + product(1, 1)])
        return jnp.stack([moved[0, 1] + moved[1, 0], moved[0, 0] + moved[1, 1]]), gradients

    with jax.default_matmul_precision("highest"):
        return sharding.spread(pair)((keys, weights))


def _linear_gaussian(
    key: Key, population: Sequence[Population], pool: Split, config: RunConfig
) -> Measured:
    """Returns transfer and excess risk of linear models on linear-Gaussian data, and P7's values.

    Arrays: `sizes` `[T]`; `risks` `[R, T]`, of both halves' models over s²; `attacked` and
    `gradients` `[R, T, 2]`, see `attack`. The condition only says where they are stored.
    """
    del pool, config
    (one,) = population
    key_fit, key_attack = jax.random.split(key)
    keys = jax.random.split(key_fit, (len(SAMPLES), NUM_REPLICATES))
    found = [fit(*one) for one in zip(keys, jnp.array(SAMPLES), strict=True)]
    weights, optima = (jnp.stack(values) for values in zip(*found, strict=True))
    keys = jax.random.split(key_attack, keys.size)
    moved, gradients = attack(keys, weights.reshape(-1, 2, DIMENSION))
    distance = weights - optima[:, :, None]
    shape = (len(SAMPLES), NUM_REPLICATES, 2)
    terms = [np.asarray(v, np.float64).reshape(shape).swapaxes(0, 1) for v in (moved, gradients)]
    arrays = {
        "sizes": np.array(SAMPLES),
        "risks": np.asarray((distance**2).sum(-1).mean(-1), np.float64).T / SIGNAL,
        "attacked": terms[0],
        "gradients": terms[1],
    }
    known = meeting.linear_gaussian(np.array(SAMPLES), DIMENSION, SIGNAL, NOISE).coefficient
    ratio = terms[0][..., 0].sum(0) / terms[0][..., 1].sum(0)
    table = tables.rows(
        np.abs(ratio - np.asarray(known)).max(keepdims=True),
        {"quantity": ["distance_from_P7"]},
        condition=one.condition.key,
    )
    return Measured(table, arrays)


LINEAR_GAUSSIAN = Measurement("linear_gaussian", 31, _linear_gaussian)
