"""The laws of the framework: predicted on one set of examples or models, measured on another.

On the same set agreement would be arithmetic.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from halfway import losses, meeting, populations, sharding, stats
from halfway.data import Split, synthetic
from halfway.lab.study import rules
from halfway.populations import Condition
from halfway.types import Key

NUM_THETAS, TRAINED = 320, 100
"""Draws of θ, and the steps of training after which the first law is looked at again."""
SIZES = (5, 20, 80, 320)
ENSEMBLE_SIZES = (1, 2, 4, 8, 16)
MARGIN, SMALL, SHARE = 0.03, 0.2, 0.15
"""Agreement: within .03, and within 15 % where the prediction is below .2."""
DIMENSION, NOISE, NUM_REPLICATES = 40, 1.0, 400
LINEAR_SIZES = (4, 8, 12, 16, 22, 28, 34, 46, 52, 60, 80, 120, 200, 400, 800)
"""n of the linear-Gaussian settings: n/d from .1 to 20, |n − d| ≥ 6."""


class Checked(NamedTuple):
    """A law at one size: predicted, measured with its interval, and the p-value of agreement."""

    size: int
    predicted: float
    measured: tuple[float, float, float]
    p_value: float


class FirstLawTerms(NamedTuple):
    """What the first law (P3) is made of, of M draws of θ at S sizes.

    Attributes:
      sizes: n of each.
      signal: `[M]`, ‖E g‖², on the known examples.
      noise: `[M]`, tr Cov(g), on the same.
      numerators: `[S, M]` of the measured μ_θ(n), on other examples.
      denominators: `[S, M]`.
    """

    sizes: Sequence[int]
    signal: np.ndarray
    noise: np.ndarray
    numerators: np.ndarray
    denominators: np.ndarray

    @property
    def n_half(self) -> float:
        """The ratio of sums over θ."""
        return float(self.noise.sum() / self.signal.sum())


class Law(NamedTuple):
    """A law of one model: n_half or k_half, and what was checked at every size."""

    half: float
    checked: list[Checked]


def margin_of(predicted: float) -> float:
    """Returns how far from a law a coefficient may be: `MARGIN`, or a `SHARE` of what is small.

    Args:
      predicted: μ by the law.
    """
    return SHARE * predicted if predicted < SMALL else MARGIN


def check(size: int, predicted: float, numerators: np.ndarray, denominators: np.ndarray) -> Checked:
    """Returns the equivalence test (TOST) of a measured ratio of sums with its prediction.

    Args:
      size: n or k.
      predicted: μ by the law.
      numerators: `[P]` of the measured μ.
      denominators: `[P]`.
    """
    margin = margin_of(predicted)
    decision = stats.ratio_equivalence(
        numerators, denominators, predicted - margin, predicted + margin
    )
    return Checked(size, predicted, rules.triple(decision), decision.p_value)


def first_law_terms(
    key: Key,
    condition: Condition,
    shape: tuple[int, ...],
    *,
    num_steps: int = 0,
    num_thetas: int = NUM_THETAS,
    sizes: Sequence[int] = SIZES,
) -> FirstLawTerms:
    """Returns signal, noise and terms of μ_θ(n) after some steps of training (P3), at each n.

    Every θ comes from an initialization and batches of its own and meets further examples of its
    own, all fresh from a Gaussian mixture: signal and noise come from 512, μ from blocks of others,
    six of the largest. On a finite data set a few blocks of 320 would be all there is, and their
    chance the same for every θ.

    Args:
      key: consumed.
      condition: for its model and its optimizer.
      shape: of an image.
      num_steps: of training, on fresh batches; 0: at initialization.
      num_thetas: draws of θ; trained ones vary more.
      sizes: n of the blocks.
    """
    key_law, key_runs = jax.random.split(key)
    law = synthetic.gaussian_mixture(key_law, num_classes=condition.num_classes, shape=shape)
    number = 6 * max(sizes)
    optimizer = populations.make_optimizer(condition.optimizer, condition.learning_rate)

    def look(key, law):
        key_init, key_known, key_new, key_walk = jax.random.split(key, 4)
        params = condition.module.init(key_init, jnp.zeros((1, *shape)))["params"]

        def step(index, state):
            batch = law.sample(jax.random.fold_in(key_walk, index), condition.batch_size)
            return populations.train_step(condition.apply_fn, optimizer, state, *batch)

        params = jax.lax.fori_loop(
            0, num_steps, step, populations.init_state(params, optimizer)
        ).params
        scale = meeting.noise_scale(condition.apply_fn, params, *law.sample(key_known, 512))
        images, labels = law.sample(key_new, number)
        terms = [
            meeting.block_terms(condition.apply_fn, params, images, labels, num_examples=n)
            for n in sizes
        ]
        return scale.signal, scale.noise, terms

    run = sharding.jit(sharding.spread(look, at_once=1))
    signal, noise, terms = run(jax.random.split(key_runs, num_thetas), law)
    columns = zip(*terms, strict=True)
    return FirstLawTerms(
        sizes,
        *(np.asarray(values, np.float64) for values in (signal, noise)),
        *(np.array(values, np.float64) for values in columns),
    )


def first_law(terms: FirstLawTerms) -> Law:
    """Returns n_half and the first law (P3) at every size.

    Args:
      terms: of `first_law_terms`.
    """
    checked = [
        check(n, float(meeting.first_law(n, terms.n_half)), *ratio)
        for n, *ratio in zip(terms.sizes, terms.numerators, terms.denominators, strict=True)
    ]
    return Law(terms.n_half, checked)


def second_law(condition: Condition, pool: Split) -> Law:
    """Returns k_half of trained models, and the second law (P4) at every k; unit: the target.

    48 models θ_A of as many pairs, each trained on its own draw of the pool: 16 estimate k_half, 16
    others are surrogates, 16 further ones targets. Input gradients of margin loss.

    Args:
      condition: of the population; its number of pairs is set here.
      pool: the examples.
    """
    size = max(ENSEMBLE_SIZES)
    condition = dataclasses.replace(condition, num_pairs=3 * size)
    population = populations.train(condition, pool)
    number = min(500, len(pool.labels))
    images = jnp.asarray(pool.images[:number], jnp.float32)
    labels = jnp.asarray(pool.labels[:number], jnp.int32)

    def gradient(params, images, labels):
        total = lambda x: losses.margin(condition.apply_fn(params, x), labels).sum()  # noqa: E731
        return jax.grad(total)(images)

    run = sharding.jit(sharding.spread(gradient, at_once=1))
    first = jax.tree.map(lambda leaf: leaf[:, 0], population.params)
    known, surrogates, targets = jnp.split(run(first, images, labels), 3)
    k_half = float(meeting.ensemble_noise(known).k_half)
    checked = []
    for k in ENSEMBLE_SIZES:
        terms = meeting.surrogate_terms(surrogates, targets, num_surrogates=k)
        products = np.asarray(terms.products, np.float64)
        followed = np.full(products.shape, float(terms.surrogate))
        checked.append(check(k, float(meeting.second_law(k, k_half)), products, followed))
    return Law(k_half, checked)


def linear_gaussian(key: Key) -> dict[str, np.ndarray]:
    """Returns simulated and exact R/s² and μ_x over n/d on both sides of n = d (P7).

    Args:
      key: consumed.
    """
    risks, measured, exact = [], [], []
    for index, n in enumerate(LINEAR_SIZES):
        setting = {"num_examples": n, "dimension": DIMENSION, "signal": 1.0, "noise": NOISE}
        simulated = meeting.simulate_linear_gaussian(
            jax.random.fold_in(key, index), **setting, num_replicates=NUM_REPLICATES
        )
        values = [
            np.asarray(terms, np.float64)
            for terms in (simulated.risk, simulated.overlap, simulated.norm)
        ]
        risks.append(rules.triple(stats.mean_test(values[0], alternative="greater")))
        measured.append(rules.triple(stats.fieller(values[1], values[2])))
        known = meeting.linear_gaussian(**setting)
        exact.append((float(known.risk), float(known.coefficient)))
    return {
        "ratios": np.array(LINEAR_SIZES) / DIMENSION,
        "risks": np.array(risks),
        "measured": np.array(measured),
        "exact": np.array(exact),
    }
