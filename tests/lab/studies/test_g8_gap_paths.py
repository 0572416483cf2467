"""The gap along training against the sum of what each step adds to it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from support import tiny_run

from halfway import losses, populations
from halfway.lab.measurements.context import Context
from halfway.lab.studies.g8 import gap_paths
from halfway.lab.study.conditions import condition
from halfway.lab.study.records import Measured

CONFIG = tiny_run.config(training={"probe_steps": (0, 30)})
PAIRS = CONFIG.num_pairs
WALK = dataclasses.replace(condition(CONFIG, "mlp", noise_rate=0.4), num_examples=50, capacity=60)
DESCENT = dataclasses.replace(
    gap_paths.by_gradient_descent(WALK), probe_steps=(0, 100), learning_rate=0.01
)


def _measure(measurement, population, pool):
    context = Context(jax.random.key(0), (population,), pool, CONFIG)
    return population, Measured(measurement.measure(context))


@pytest.fixture(scope="module")
def descent(train, pool):
    return _measure(gap_paths.DESCENT_GAP, train(DESCENT), pool)


@pytest.fixture(scope="module")
def walk(train, pool):
    """Of four pairs, of which as many are followed as other tests train."""
    four = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf[:1]]), train(WALK))
    condition = dataclasses.replace(WALK, num_pairs=PAIRS + 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gap_paths, "ADAM_PAIRS", PAIRS)
        return _measure(gap_paths.WALK_GAP, four.replace(condition=condition), pool)


def _read(measured):
    """Gap and sum, `[P, 2, T]` each."""
    return [measured.read(name, "pair", "model", "step") for name in ("gap", "summed")]


@pytest.mark.parametrize("path", ["descent", "walk"])
def test_the_gap_is_that_of_training_at_its_ends(path, request):
    population, measured = request.getfixturevalue(path)
    gap, summed = _read(measured)
    steps = measured.dataset["step"].values
    assert steps.tolist() == list(range(0, population.condition.probe_steps[-1] + 1, 10))
    landscapes = population.landscapes
    expected = np.asarray(landscapes["other"]["cross_entropy"] - landscapes["own"]["cross_entropy"])
    assert len(gap) == (PAIRS if path == "descent" else PAIRS + 1)
    ends = gap[:PAIRS, :, [0, -1]]
    np.testing.assert_allclose(ends, expected[:PAIRS], rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(summed[..., 0], gap[..., 0])
    # A pair that was not followed has no gap, and is not confused with one that diverged.
    assert np.isnan(gap[PAIRS:]).all() and np.isnan(summed[PAIRS:]).all()
    assert measured.finite.all()


def test_steps_of_gradient_descent_add_up_to_first_order(descent, pool):
    population, measured = descent
    gap, summed = _read(measured)
    grown, added = (values[..., -1] - values[..., 0] for values in (gap, summed))
    assert grown.min() > 0.02
    np.testing.assert_allclose(added, grown, rtol=0.05, atol=0.01)
    # What a step adds is η times ‖g_A‖² − ⟨g_A, g_B⟩, with A as it was trained on.
    walks = populations.retrace(DESCENT, pool, steps=range(10), num_pairs=PAIRS)
    a, b, _ = population.halves
    x, labels = jnp.asarray(pool.images), population.trained_labels[0, 0]

    @jax.jit
    def gradient(params, rows, labels):
        def loss(params):
            return losses.cross_entropy(population.apply_fn(params, x[rows]), labels).mean()

        return ravel_pytree(jax.grad(loss)(params))[0]

    total = 0.0
    for step in range(10):
        params = jax.tree.map(lambda leaf, t=step: leaf[0, 0, t], walks)
        own_gradient = gradient(params, a.indices[0], labels)
        other = gradient(params, b.indices[0], b.labels[0])
        total += DESCENT.learning_rate * float(own_gradient @ own_gradient - own_gradient @ other)
    assert summed[0, 0, 1] - summed[0, 0, 0] == pytest.approx(total, rel=1e-3)


def test_steps_of_any_optimizer_add_up_by_the_path_identity(walk):
    gap, summed = (values[:PAIRS] for values in _read(walk[1]))
    assert np.abs(gap[..., -1] - gap[..., 0]).min() > 0.05
    np.testing.assert_allclose(summed, gap, atol=0.01)


@pytest.mark.quick
def test_gradient_descent_takes_the_whole_half_at_every_step():
    descent = gap_paths.by_gradient_descent(WALK)
    assert descent.batch_size == descent.capacity == descent.num_examples == 50
    assert (descent.optimizer, descent.weight_decay) == ("sgd", 0.0)
