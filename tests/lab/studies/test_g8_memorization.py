"""What κ is made of: passes over a half by hand, gradients model by model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from lab.studies.plants import g8 as planted
from support import tiny_run

from halfway import losses, populations
from halfway.lab.measurements.context import Context
from halfway.lab.measurements.fresh import PRODUCTS
from halfway.lab.studies.g8 import measure, study
from halfway.lab.studies.g8.measure import MEMORIZATION, PASSES
from halfway.lab.study.conditions import condition
from halfway.lab.study.records import Measured

CONFIG = tiny_run.config(training={"probe_steps": (0, 30)})
# Fewer examples than places: the last ones of a half are padding.
CONDITION = dataclasses.replace(
    condition(CONFIG, "mlp", noise_rate=0.4), num_examples=50, capacity=60
)


@pytest.mark.quick
def test_passes_are_steps_over_the_half_and_end_with_training():
    trained = dataclasses.replace(condition(tiny_run.digits(), "mlp"), probe_steps=(0, 200))
    assert trained.num_examples == 600 and trained.batch_size == 64
    assert measure.pass_steps(trained) == (9, 19, 38, 75, 150, 200)


@pytest.fixture(scope="module")
def context(train, pool):
    return Context(jax.random.key(8), (train(CONDITION),), pool, CONFIG)


@pytest.fixture(scope="module")
def memorized(context):
    return Measured(MEMORIZATION.measure(context))


def test_kappa_is_made_of_gradients_of_both_halves_and_of_s(memorized, context, pool):
    steps, pair, side = measure.pass_steps(CONDITION), 1, 1
    assert steps == (1, 2, 3, 6, 12, 25)
    walks = populations.retrace(CONDITION, pool, steps=steps, num_pairs=CONFIG.num_pairs)
    images = jnp.asarray(pool.images)
    a, b, holdout = jax.tree.map(lambda leaf: leaf[pair], context.population.halves)

    @jax.jit
    def gradient(params, sample):
        def loss_fn(params):
            logits = CONDITION.apply_fn(params, images[sample.indices])
            values = losses.cross_entropy(logits, sample.labels)
            return jnp.where(sample.mask, values, 0.0).sum() / sample.mask.sum()

        loss, slopes = jax.value_and_grad(loss_fn)(params)
        return loss, ravel_pytree(slopes)[0]

    @jax.jit
    def gradients(params, sample):
        single = jax.tree.map(lambda leaf: leaf[:, None], sample)
        return jax.vmap(lambda example: gradient(params, example)[1])(single)

    for passes in (PASSES[0], PASSES[-1]):
        place = PASSES.index(passes)
        params = jax.tree.map(lambda leaf, at=(pair, side, place): leaf[at], walks)
        (own_loss, own_gradient), (other_loss, other) = (gradient(params, half) for half in (b, a))
        of_examples = np.asarray(gradients(params, holdout))
        expected = {
            "own_own": own_gradient @ own_gradient,
            "own_other": own_gradient @ other,
            "trace_cov": of_examples.var(0, ddof=1).sum(),
            "gap": other_loss - own_loss,
        }
        for name, value in expected.items():
            read = memorized.read(name, "pair", "model", passes=passes)[pair, side]
            assert read == pytest.approx(float(value), rel=2e-3), name


def test_noise_is_used_up_by_reuse(memorized):
    terms = {
        passes: study.kappa_terms(memorized, CONDITION.num_examples, passes)
        for passes in (PASSES[0], PASSES[-1])
    }
    kappa = {passes: (above / below).mean() for passes, (above, below) in terms.items()}
    assert kappa[PASSES[-1]] > kappa[PASSES[0]] + 0.2


@pytest.mark.quick
def test_the_two_numbers_of_passes_are_as_many_steps():
    config = tiny_run.digits()
    conditions = study.cells(config)
    assert study.sizes(config) == (150, 600)
    assert {trained.num_pairs for trained in conditions.values()} == {32}
    steps = {
        (trained.num_examples, passes): step
        for trained in conditions.values()
        for passes, step in zip(PASSES, measure.pass_steps(trained), strict=True)
    }
    assert steps[150, study.MANY] == steps[600, study.FEW] == 75
    assert steps[600, PASSES[-1]] == 300  # the curve is followed that far


@pytest.mark.quick
def test_kappa_is_pooled_over_noise_rates_as_a_ratio_of_sums():
    records = planted.plant(np.random.default_rng(3), 1.0)
    conditions = study.cells(records.config)
    for rate, weight in zip(study.RATES, (1.0, 10.0, 100.0), strict=True):
        for size in study.sizes(records.config):
            trained = conditions[study.cell_name(size, rate)]
            dataset = records.datasets[MEMORIZATION.name, trained.id]
            for name in PRODUCTS:
                dataset[name] = dataset[name] * weight
    kappa = {}
    for size, passes in zip(study.sizes(records.config), (study.MANY, study.FEW), strict=True):
        above = below = 0.0
        for rate in study.RATES:
            trained = conditions[study.cell_name(size, rate)]
            dataset = records.datasets[MEMORIZATION.name, trained.id].sel(passes=passes)
            trace = float(dataset["trace_cov"].sum())
            above += trace - size * float((dataset["own_own"] - dataset["own_other"]).sum())
            below += trace
        kappa[size] = above / below
    (part,) = study.decide(records).parts
    assert part.estimate == pytest.approx(kappa[150] - kappa[600])
