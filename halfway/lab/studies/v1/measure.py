"""Residuals of the identities and laws P1 to P3, P6 and P8 to P10: V1's measurement.

A replicate is a pair of the run, with a key of its own: its images, its network and its draws are
those of no other. No population is read.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import xarray as xr

from halfway import losses, meeting, populations, sharding
from halfway.keys import named_key
from halfway.lab.measurements import laws
from halfway.lab.measurements.context import Context, Program, Shared
from halfway.lab.studies.v1.linear_gaussian import num_each, sum_each
from halfway.lab.study.records import Measurement
from halfway.populations import Condition
from halfway.types import Array, Key, Params, Sample

PATH, SPLIT_VARIANCE, SPLIT_MEAN = "path", "split variance", "split mean"
CLASSES, MIDPOINT, ROUGHNESS = "classes", "midpoint", "roughness"
IDENTITY_NAMES = (PATH, SPLIT_VARIANCE, SPLIT_MEAN, CLASSES, MIDPOINT, ROUGHNESS)
"""P1, both halves of P2, P6, P8 and P9."""
MODEL = {"kind": "mlp", "widths": (32,), "activation": "tanh"}
"""Smooth, for the quadrature of P1, and small: the identities hold for any network."""
HALF_SIZE, OTHER_SIZE = 48, 32
"""Images of A, and of B in P6: different numbers, so that a wrong one of the two is seen."""
NUM_STEPS, NUM_PARTS = 8, 2
"""Steps of the walk of P1, and the parts that each is integrated on by Simpson's rule."""
NUM_SPLITS = 4096
"""Splits of P2 in each of 16 pairs: the variance is known to √(2/65,536) = .6 %."""
BLOCK_SIZES, NUM_THETAS = (20, 320), 32
"""n of P3, on both sides of n_half, and draws of θ at initialization: μ is known to .005."""
QUADRATIC_DIMENSION = 32
SHARED_WEIGHT = 0.8
"""Of B's weights in P9 that are A's; the rest, √(1 − .8²), is its own. So what they share is
positive."""
NUM_MODES, KERNEL_SIZE, NUM_REGRESSIONS = 400, 60, 256
"""Modes of P10, its n, and pairs of kernel regressions for each setting, at least. One n is one
program: compilation takes longer than all regressions."""


SPACES = ("values", "input gradients")
"""In which two regressions meet: μ_f and μ_J."""


class KernelSetting(NamedTuple):
    """A setting of P10, on a target i^−1 and roughness i.

    Attributes:
      name: in words.
      decay: eigenvalues are i^−decay.
      noise: σ².
      ridge: δ.
    """

    name: str
    decay: float
    noise: float
    ridge: float


KERNEL_SETTINGS = (
    KernelSetting("ridge", 1.5, 0.1, 0.01),
    KernelSetting("noise", 1.5, 0.4, 0.001),
    KernelSetting("neither", 2.0, 0.0, 0.0),
)
"""A ridge, more noise, and neither of them on a steeper spectrum."""


class Replicate(NamedTuple):
    """What the identities of networks are looked at on.

    Attributes:
      half_a: `HALF_SIZE` images of the pool.
      half_b: as many others.
      params: a network at initialization.
      other: another one.
      rates: learning rate and weight decay of the run.
    """

    half_a: Sample
    half_b: Sample
    params: Params
    other: Params
    rates: Array


def smooth(condition: Condition) -> Condition:
    """Returns a condition with the small smooth network in the place of its own.

    Args:
      condition: of the run.
    """
    return dataclasses.replace(condition, architecture="tanh", model=MODEL, width=0)


def path_terms(replicate: Replicate, images: Array, program: Condition) -> tuple[Array, Array]:
    """Returns |Σ descents − drop| and Σ |descents| of a walk on A, on the landscape of B (P1).

    Args:
      replicate: its network walks, with the optimizer of the run, on all of A at each step.
      images: of the pool.
      program: for the model and the optimizer.
    """
    optimizer = populations.make_optimizer(program.optimizer, *replicate.rates)
    (x, labels), other = (
        (images[half.indices], half.labels) for half in (replicate.half_a, replicate.half_b)
    )

    def step(state, _):
        state = populations.train_step(program.apply_fn, optimizer, state, x, labels)
        return state, state.params

    start = populations.init_state(replicate.params, optimizer)
    _, points = jax.lax.scan(step, start, length=NUM_STEPS)
    walk = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), replicate.params, points)

    def landscape(params):
        return losses.cross_entropy(program.apply_fn(params, other[0]), other[1]).mean()

    identity = meeting.path_identity(landscape, walk, num_subdivisions=NUM_PARTS, rule="simpson")
    return identity.residual, jnp.abs(identity.descents).sum()


def split_terms(
    key: Key, replicate: Replicate, images: Array, program: Condition
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Returns the terms of variance and mean of L_A − L_B over splits, by what they must be (P2).

    Σ (L_A − L_B)² minus its expectation, over that expectation; and Σ (L_A − L_B) over its number
    times the standard deviation.

    Args:
      key: consumed.
      replicate: both halves together are split anew; its network has seen neither.
      images: of the pool.
      program: for the model.
    """
    rows = jnp.concatenate([replicate.half_a.indices, replicate.half_b.indices])
    labels = jnp.concatenate([replicate.half_a.labels, replicate.half_b.labels])
    values = losses.cross_entropy(program.apply_fn(replicate.params, images[rows]), labels)
    split = meeting.split_null(key, values, num_splits=NUM_SPLITS)
    expected = NUM_SPLITS * split.variance
    return (
        (jnp.square(split.differences).sum() - expected, expected),
        (split.differences.sum(), NUM_SPLITS * jnp.sqrt(split.variance)),
    )


def class_terms(replicate: Replicate, images: Array, program: Condition) -> tuple[Array, Array]:
    """Returns how far sums of meeting matrices are from ⟨∇L_A, ∇L_B⟩, and ‖∇L_A‖ ‖∇L_B‖ (P6).

    The farther of two sums: over classes, and of r K r by the tangent kernel.

    Args:
      replicate: of its B the first `OTHER_SIZE` images count.
      images: of the pool.
      program: for the model.
    """
    mask = jnp.arange(HALF_SIZE) < OTHER_SIZE
    halves = replicate.half_a, replicate.half_b._replace(mask=mask)

    def gradient(half):
        def landscape(params):
            logits = program.apply_fn(params, images[half.indices])
            return losses.masked_mean(losses.cross_entropy(logits, half.labels), half.mask)

        return jax.grad(landscape)(replicate.params)

    a, b = (gradient(half) for half in halves)
    product = optax.tree.vdot(a, b)
    sums = [
        matrix_fn(program.apply_fn, replicate.params, images, *halves).sum()
        for matrix_fn in (meeting.meeting_matrix, meeting.meeting_matrix_by_kernel)
    ]
    residual = jnp.maximum(*(jnp.abs(total - product) for total in sums))
    return residual, optax.tree.norm(a) * optax.tree.norm(b)


def midpoint_terms(key: Key) -> tuple[Array, Array]:
    """Returns |L(midpoint) − P8| of a random quadratic, and the size of what P8 adds up.

    Args:
      key: consumed.
    """
    key_matrix, key_rest = jax.random.split(key)
    matrix = jax.random.normal(key_matrix, (QUADRATIC_DIMENSION, QUADRATIC_DIMENSION))
    hessian = (matrix + matrix.T) / 2  # of both signs: P8 asks for no convexity
    slope, a, b = jax.random.normal(key_rest, (3, QUADRATIC_DIMENSION))

    def landscape(z):
        return z @ hessian @ z / 2 + slope @ z

    delta = a - b
    curvature = delta @ jax.jvp(jax.grad(landscape), (a,), (delta,))[1]
    ends = landscape(a), landscape(b)
    residual = landscape((a + b) / 2) - meeting.quadratic_midpoint(*ends, curvature)
    size = (jnp.abs(ends[0]) + jnp.abs(ends[1])) / 2 + jnp.abs(curvature) / 8
    return jnp.abs(residual), size


def roughness_terms(replicate: Replicate, images: Array, program: Condition) -> tuple[Array, Array]:
    """Returns |odds(μ_J) − odds(μ_f) Ω_s/Ω_v| of two networks on A, and odds(μ_J) (P9).

    Args:
      replicate: B's network has `SHARED_WEIGHT` of A's weights, and the rest of another.
      images: of the pool.
      program: for the model.
    """
    x = images[replicate.half_a.indices]
    own_weight = (1 - SHARED_WEIGHT**2) ** 0.5
    partner = jax.tree.map(
        lambda a, b: SHARED_WEIGHT * a + own_weight * b, replicate.params, replicate.other
    )
    first, second = (
        functools.partial(program.apply_fn, params) for params in (replicate.params, partner)
    )
    function = meeting.function_terms(first(x), second(x))
    jacobian = meeting.jacobian_coefficient(first, second, x).terms
    rough = meeting.roughness(function, jacobian)
    odds, odds_jacobian = (
        meeting.odds(meeting.mutual_coefficient(terms)) for terms in (function, jacobian)
    )
    return jnp.abs(odds_jacobian - odds * rough.signal / rough.noise), odds_jacobian


def _identities(key: Key, shared: Shared, program: Program) -> Mapping[str, Array]:
    """Returns `residual` and `scale` `[I]` of one replicate, in the order of `IDENTITY_NAMES`."""
    keys = {name: named_key(key, name) for name in ("rows", "init", "splits", "midpoint")}
    condition, images = program.condition, shared.images
    rows = jax.random.choice(keys["rows"], images.shape[0], (2, HALF_SIZE), replace=False).astype(
        jnp.int32
    )
    half_a, half_b = (
        Sample(index, shared.labels[index], jnp.ones(HALF_SIZE, bool)) for index in rows
    )
    params, other = (
        condition.module.init(key, images[:1])["params"] for key in jax.random.split(keys["init"])
    )
    replicate = Replicate(half_a, half_b, params, other, shared.extra)
    variance, mean = split_terms(keys["splits"], replicate, images, condition)
    terms = {
        PATH: path_terms(replicate, images, condition),
        SPLIT_VARIANCE: variance,
        SPLIT_MEAN: mean,
        CLASSES: class_terms(replicate, images, condition),
        MIDPOINT: midpoint_terms(keys["midpoint"]),
        ROUGHNESS: roughness_terms(replicate, images, condition),
    }
    residual, scale = (
        jnp.stack([terms[name][place] for name in IDENTITY_NAMES]) for place in range(2)
    )
    return {"residual": residual, "scale": scale}


def _first_law(key: Key, condition: Condition, shape: tuple[int, ...]) -> dict[str, Any]:
    """Returns the variables of P3: terms of each pair and the law at the n_half of all of them."""
    num_pairs = condition.num_pairs
    num_thetas = num_pairs * num_each(NUM_THETAS, num_pairs)
    terms = laws.first_law_terms(
        key, smooth(condition), shape, num_thetas=num_thetas, sizes=BLOCK_SIZES
    )
    sizes = jnp.array(BLOCK_SIZES, jnp.float32)
    cells = "pair", "block_size"
    return {
        "signal": (("pair",), sum_each(terms.signal, num_pairs)),
        "noise": (("pair",), sum_each(terms.noise, num_pairs)),
        "block_product": (cells, sum_each(terms.numerators.T, num_pairs)),
        "block_square": (cells, sum_each(terms.denominators.T, num_pairs)),
        "first_law": (("block_size",), meeting.first_law(sizes, terms.n_half)),
    }


@functools.partial(sharding.jit, static_argnames=("num_replicates",))
def _regressions(key: Key, setting: Array, *, num_replicates: int) -> tuple[Array, Array]:
    """Returns products and squares `[R, 2]` of two regressions in both of `SPACES` (P10).

    Args:
      key: consumed.
      setting: `[3]`, decay, σ² and δ.
      num_replicates: R.
    """
    decay, noise, ridge = setting
    modes = jnp.arange(1.0, NUM_MODES + 1)
    simulated = meeting.simulate_kernel_regression(
        functools.partial(meeting.gaussian_features, num_modes=NUM_MODES),
        key,
        modes**-decay,
        1 / modes,
        num_examples=KERNEL_SIZE,
        num_replicates=num_replicates,
        ridge=ridge,
        noise=noise,
        weights=modes,
    )
    return (
        jnp.stack([simulated.signal_function, simulated.signal_input], -1),
        jnp.stack([simulated.norm_function, simulated.norm_input], -1),
    )


def _spectral_law(key: Key, num_pairs: int) -> dict[str, Any]:
    """Returns the variables of P10: terms of each pair in every setting, and the law."""
    modes = jnp.arange(1.0, NUM_MODES + 1)
    number = num_pairs * num_each(NUM_REGRESSIONS, num_pairs)
    law_fn = jax.jit(functools.partial(meeting.spectral_law, weights=modes))
    products, squares, predicted = [], [], []
    for name, *numbers in KERNEL_SETTINGS:
        terms = _regressions(named_key(key, name), jnp.array(numbers), num_replicates=number)
        for values, column in zip((products, squares), terms, strict=True):
            values.append(sum_each(column, num_pairs))
        decay, noise, ridge = numbers
        law = law_fn(modes**-decay, 1 / modes, KERNEL_SIZE, ridge=ridge, noise=noise)
        predicted.append([law.function_coefficient, law.input_coefficient])
    cells = "pair", "setting", "space"
    return {
        "kernel_product": (cells, np.stack(products, 1)),
        "kernel_square": (cells, np.stack(squares, 1)),
        "spectral_law": (cells[1:], np.array(predicted)),
    }


def _measure(context: Context) -> xr.Dataset:
    """Returns residuals of identities, and measured coefficients beside the laws they must obey.

    `residual` and `scale` (pair, identity), see the functions of each; of P3 `signal` and `noise`
    (pair), `block_product` and `block_square` (pair, block_size) and `first_law` (block_size); of
    P10 `kernel_product` and `kernel_square` (pair, setting, space) and `spectral_law` (setting,
    space). No population is read: the condition says which optimizer, how many pairs there are, and
    where this is stored.
    """
    condition = context.condition
    rates = jnp.array([condition.learning_rate, condition.weight_decay], jnp.float32)
    # Not the tensor cores' 10 bits: an identity would be off by a thousandth.
    with jax.default_matmul_precision("highest"):
        identities = context.over_members(
            _identities,
            context.pair_keys(),
            condition=smooth(condition),
            shared_extra=rates,
            at_once=1,
            trains=True,
        )
        variables = _first_law(
            named_key(context.key, "first law"), condition, context.pool.images.shape[1:]
        )
        variables |= _spectral_law(named_key(context.key, "spectral law"), condition.num_pairs)
    cells = "pair", "identity"
    return context.dataset(
        {name: (cells, values) for name, values in identities.items()} | variables,
        identity=IDENTITY_NAMES,
        block_size=BLOCK_SIZES,
        setting=[setting.name for setting in KERNEL_SETTINGS],
        space=SPACES,
    )


IDENTITIES = Measurement("identities", _measure)
