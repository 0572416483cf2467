"""M_x of a tiny trained population against the library called on one pair by itself."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import tiny_run

from halfway import losses, populations
from halfway.lab.measurements.meetings import MEETING, SUBSET, attack_of, settings_of
from halfway.lab.study import conditions, tables
from halfway.lab.study.protocol import Records

NUM_PAIRS = 3


CONFIG = tiny_run.config(num_pairs=NUM_PAIRS, training={"probe_steps": (0, 40)})
EPSILON = CONFIG.attack.epsilon


@pytest.fixture(scope="module")
def pool(digits):
    return digits.pool(CONFIG.subset)


@pytest.fixture(scope="module")
def trained(pool):
    return populations.train(conditions.condition(CONFIG, "mlp"), pool)


def _reader(table):
    return tables.Reader(Records(table, tables.conditions_table([]), CONFIG))


def pick(tree, *index):
    return jax.tree.map(lambda leaf: leaf[index], tree)


def test_what_is_measured_is_the_library_on_one_pair(trained, pool):
    reader = _reader(MEETING.measure(jax.random.key(3), [trained], pool, CONFIG).table)
    key = trained.condition.key
    for p in range(NUM_PAIRS):
        rows = np.asarray(trained.halves.s.indices[p])
        x, labels = jnp.asarray(pool.images[rows]), jnp.asarray(pool.labels[rows])
        params = [pick(trained.params, p, k) for k in range(2)]
        models = [functools.partial(trained.apply_fn, one) for one in params]
        for k, surrogate in enumerate("AB"):
            attack = attack_of(settings_of(CONFIG), EPSILON)
            moved = attack(models[k], jax.random.key(0), x, labels).adversarial
            for m, target in enumerate("AB"):
                before, after = (losses.margin(models[m](z), labels) for z in (x, moved))
                where = {"surrogate": surrogate, "target": target, "budget": EPSILON}
                rise = reader.cube(key, "increase", subset="all", **where)[p]
                np.testing.assert_allclose(rise, float((after - before).sum()), rtol=1e-3)
                right = (models[k](x).argmax(-1) == labels) & (models[m](x).argmax(-1) == labels)
                fooled = right & (models[m](moved).argmax(-1) != labels)
                for quantity, number in (("num_examples", right), ("num_fooled", fooled)):
                    found = reader.cube(key, quantity, subset=SUBSET, **where)[p]
                    assert found == int(number.sum())
            slope = jax.grad(lambda z: losses.margin(models[k](z), labels).sum())(x)  # noqa: B023
            size = reader.cube(key, "gradient_norm", ("pair", "surrogate"))[p, k]
            np.testing.assert_allclose(size, float(jnp.abs(slope).sum()), rtol=1e-4)


def test_a_diverged_pair_is_undefined_and_the_others_stay(trained, pool):
    whole = MEETING.measure(jax.random.key(3), [trained], pool, CONFIG).table
    params = jax.tree.map(lambda leaf: leaf.at[1, 0].set(jnp.nan), trained.params)
    broken = dataclasses.replace(trained, params=params)
    table = MEETING.measure(jax.random.key(3), [broken], pool, CONFIG).table
    lost = (table["pair"] == 1).to_numpy()
    assert table["value"].isna().to_numpy()[lost].all()
    assert table[~lost].equals(whole[~lost])
