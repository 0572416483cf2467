"""κ on fresh batches: which data, which examples, and one run by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from support import tiny_run
from support.drawings import assert_drawn_on_the_axes_given, blue

from halfway import losses, populations
from halfway.data import Split
from halfway.lab.measurements import fresh
from halfway.lab.measurements.context import Context
from halfway.lab.measurements.fresh import FRESH, PRODUCTS
from halfway.lab.studies.v3.figures import along_steps
from halfway.lab.study.records import Measured

BATCH = 4
CONFIG = tiny_run.config(training={"probe_steps": (0, 1), "batch_size": BATCH})
CONDITION = fresh.fresh_condition(CONFIG)
KEY = jax.random.key(9)


@pytest.fixture(scope="module")
def population(train):
    return train(CONDITION)


@pytest.mark.quick
def test_a_pool_is_used_where_it_has_a_hundred_batches():
    held = fresh.HELD_OUT
    assert fresh.num_batches(6399, 64) == 0
    assert fresh.num_batches(6400, 64) == 100 - held
    assert fresh.num_batches(60_000, 64) == fresh.MOST_STEPS


def test_on_the_pool_every_example_is_met_once(population, pool):
    """A run by hand: the batches are the pool's, none of them is of B."""
    measured = Measured(FRESH.measure(Context(KEY, (population,), pool, CONFIG)))
    assert measured.read("of_pool") == 1
    number = fresh.num_batches(len(pool.labels), BATCH)
    assert measured["own_own"].shape == (CONFIG.num_pairs, number)
    pair = CONFIG.num_pairs - 1
    key_start, key_order = jax.random.split(
        Context(KEY, (population,), pool, CONFIG).pair_keys()[pair]
    )
    order = np.asarray(jax.jit(lambda k: jax.random.permutation(k, len(pool.labels)))(key_order))
    held, rest = np.split(order, [fresh.HELD_OUT * BATCH])
    images, labels = jnp.asarray(pool.images, jnp.float32), jnp.asarray(pool.labels, jnp.int32)

    @jax.jit
    def gradient(params, rows):
        def loss_fn(params):
            return losses.cross_entropy(
                CONDITION.apply_fn(params, images[rows]), labels[rows]
            ).mean()

        return ravel_pytree(jax.grad(loss_fn)(params))[0]

    optimizer = populations.make_optimizer(CONDITION.optimizer, CONDITION.learning_rate)
    step = jax.jit(lambda s, x, y: populations.train_step(CONDITION.apply_fn, optimizer, s, x, y))
    params = CONDITION.module.init(key_start, images[:1])["params"]
    state = populations.init_state(params, optimizer)
    for t in range(3):
        rows = rest[t * BATCH : (t + 1) * BATCH]
        own_gradient, other = gradient(state.params, rows), gradient(state.params, held)
        expected = {"own_own": own_gradient @ own_gradient, "own_other": own_gradient @ other}
        part = held[t * BATCH : (t + 1) * BATCH]
        single = np.stack([gradient(state.params, part[i : i + 1]) for i in range(BATCH)])
        expected["trace_cov"] = single.var(0, ddof=1).sum()
        for name, value in expected.items():
            read = measured.read(name, "pair", "step")[pair, t]
            assert read == pytest.approx(float(value), rel=2e-3), (name, t)
        state = step(state, images[rows], labels[rows])


def test_too_small_a_pool_gives_way_to_a_mixture(population, pool):
    few = Split(pool.images[:200], pool.labels[:200])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fresh, "MOST_STEPS", 60)
        measured = Measured(FRESH.measure(Context(KEY, (population,), few, CONFIG)))
    assert measured.read("of_pool") == 0
    assert measured["own_own"].shape == (CONFIG.num_pairs, 60)
    above, below = fresh.fresh_terms(measured, BATCH)
    assert abs(above.sum() / below.sum()) < 0.15
    for name in PRODUCTS:  # every run sees data of its own
        values = measured.read(name, "pair", "step")
        assert len(np.unique(values[:, 0])) == CONFIG.num_pairs


def test_the_figure_has_kappa_and_its_margins():
    kappa = [[0.01, -0.02, 0.04], [0.0, -np.inf, np.inf]]
    ax = along_steps([5, 15], kappa, margin=0.05)
    np.testing.assert_allclose(blue(ax), [0.01, 0.0])
    assert any("0.05" in text.get_text() for text in ax.texts)
    assert_drawn_on_the_axes_given(lambda ax: along_steps([5, 15], kappa, margin=0.05, ax=ax))
