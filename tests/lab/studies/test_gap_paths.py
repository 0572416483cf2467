"""The gap along training against the sum of what each step adds to it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from support import tiny_run

from halfway import data, losses, populations
from halfway.lab.studies.g8 import gap_paths
from halfway.lab.study.conditions import condition

PAIRS = 2


@pytest.fixture(scope="module")
def measured(digits):
    pool = data.Split(digits.train.images[:300], digits.train.labels[:300])
    own = dataclasses.replace(
        condition(_CONFIG, "mlp", noise_rate=0.4),
        model={"kind": "mlp", "widths": (8,)},
        num_examples=40,
        capacity=40,
        num_holdout=60,
        num_pairs=PAIRS,
        batch_size=16,
        probe_steps=(0, 60),
    )
    descent = dataclasses.replace(
        gap_paths.by_gradient_descent(own), probe_steps=(0, 100), learning_rate=0.02
    )
    trained = [populations.train(one, pool) for one in (descent, own)]
    table = gap_paths.GAP_PATH.measure(jax.random.key(0), trained, pool, _CONFIG).table
    return pool, trained, table


_CONFIG = tiny_run.digits()


def _values(table, one, quantity):
    rows = table[(table.condition == one.key) & (table.quantity == quantity)]
    rows = rows.sort_values(["pair", "surrogate", "step"])
    return rows["value"].to_numpy().reshape(PAIRS, 2, -1)


def test_the_gap_is_that_of_training_at_its_ends(measured):
    _, trained, table = measured
    for population in trained:
        gap = _values(table, population.condition, "path_gap")
        losses = population.landscapes
        expected = losses["other"]["cross_entropy"] - losses["own"]["cross_entropy"]
        np.testing.assert_allclose(gap[..., [0, -1]], expected, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(
            _values(table, population.condition, "path_sum")[..., 0], gap[..., 0]
        )


def test_steps_of_gradient_descent_add_up_to_first_order(measured):
    pool, (descent, _), table = measured
    gap, summed = (_values(table, descent.condition, f"path_{n}") for n in ("gap", "sum"))
    grown, added = (v[..., -1] - v[..., 0] for v in (gap, summed))
    assert grown.min() > 0.02
    np.testing.assert_allclose(added, grown, rtol=0.1)
    # What a step adds is η times ‖g_A‖² − ⟨g_A, g_B⟩, with A as it was trained on.
    walk = populations.retrace(descent.condition, pool, steps=range(10), num_pairs=1)
    a, b, _ = descent.halves
    x, labels = jnp.asarray(pool.images), descent.trained_labels[0, 0]

    @jax.jit
    def gradient(params, rows, labels):
        def loss(params):
            return losses.cross_entropy(descent.apply_fn(params, x[rows]), labels).mean()

        return ravel_pytree(jax.grad(loss)(params))[0]

    total = 0.0
    for step in range(10):
        params = jax.tree.map(lambda leaf, t=step: leaf[0, 0, t], walk)
        own = gradient(params, a.indices[0], labels)
        other = gradient(params, b.indices[0], b.labels[0])
        total += 0.02 * float(own @ own - own @ other)
    assert summed[0, 0, 1] - summed[0, 0, 0] == pytest.approx(total, rel=1e-3)


def test_steps_of_any_optimizer_add_up_by_the_path_identity(measured):
    _, (_, own), table = measured
    gap, summed = (_values(table, own.condition, f"path_{n}") for n in ("gap", "sum"))
    assert np.abs(gap[..., -1] - gap[..., 0]).min() > 0.05
    np.testing.assert_allclose(summed, gap, atol=0.01)


def test_gradient_descent_takes_the_whole_half_at_every_step():
    one = gap_paths.by_gradient_descent(condition(_CONFIG, "mlp"))
    assert one.batch_size == one.capacity == one.num_examples == 600
    assert (one.optimizer, one.weight_decay) == ("sgd", 0.0)
