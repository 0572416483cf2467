"""What is settled for all measurements: keys, placement, labels, and pairs that diverged."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import tiny_run

from halfway import data, populations, sharding
from halfway.keys import named_key
from halfway.lab.measurements.context import Context
from halfway.lab.runtime import pipeline
from halfway.lab.runtime.runs import Identity, Run
from halfway.lab.study import conditions
from halfway.lab.study.records import Measured, Measurement, Request

CONFIG = tiny_run.config()
NUM_PAIRS = CONFIG.num_pairs  # three on two devices: the padding must not show
KEY = jax.random.key(11)
POOL = data.Split(
    np.random.default_rng(0).random((20, 2, 2, 1), np.float32), np.arange(20, dtype=np.int32)
)


def _population(config=CONFIG):
    """A population that was never trained."""
    condition = conditions.condition(config, "mlp")
    size = condition.num_pairs
    rows = jnp.arange(size * 4, dtype=jnp.int32).reshape(size, 4)
    sample = populations.Sample(rows, rows, jnp.ones(rows.shape, bool))
    both = jnp.zeros((size, 2))
    return populations.Population(
        condition=condition,
        params={"weight": jnp.arange(size * 2.0).reshape(size, 2)},
        halves=populations.Halves(sample, sample, sample),
        trained_labels=both,
        landscapes={"own": {"error": both[..., None]}},
        constant={"own": {"error": both}},
        products={"own_own": both[..., None]},
        num_steps=both,
    )


def _context(config=CONFIG, key=KEY):
    return Context(key, (_population(config),), POOL, config)


# A function of one pair


def _look(pair, shared, program):
    rows = pair.halves.s.indices
    return {
        "weight": pair.params["weight"],
        "draw": jax.random.uniform(pair.key, (3,)),
        "brightness": shared.images[rows].sum() * shared.epsilon,
        "labels": shared.labels[rows],
        "extra": pair.extra + shared.extra,
        "num_steps": jnp.int32(program.num_steps),
    }


def test_every_pair_is_looked_at_by_itself():
    context = _context()
    extra = np.array([10.0, 20.0, 30.0], np.float32)
    arrays = context.over_pairs(_look, extra=extra, shared_extra=jnp.float32(1), epsilon=0.5)
    population, keys = context.population, context.pair_keys()
    for p in range(NUM_PAIRS):
        rows = np.asarray(population.halves.s.indices[p])
        np.testing.assert_array_equal(arrays["weight"][p], population.params["weight"][p])
        np.testing.assert_array_equal(arrays["draw"][p], jax.random.uniform(keys[p], (3,)))
        brightness = POOL.images[rows].sum() * 0.5
        np.testing.assert_allclose(arrays["brightness"][p], brightness, rtol=1e-6)
        np.testing.assert_array_equal(arrays["labels"][p], rows)
        assert arrays["extra"][p] == extra[p] + 1
    assert arrays["num_steps"].tolist() == [CONFIG.attack.num_steps] * NUM_PAIRS
    assert all(isinstance(values, np.ndarray) for values in arrays.values())
    decides = context.over_pairs(_look, extra=extra, shared_extra=jnp.float32(1), at_once=1)
    ratio = decides["brightness"] / arrays["brightness"]
    np.testing.assert_allclose(ratio, CONFIG.attack.epsilon / 0.5, rtol=1e-6)
    np.testing.assert_array_equal(decides["draw"], arrays["draw"])


# Keys


def test_a_pair_keeps_its_key_in_a_larger_population():
    few, many = (_context(tiny_run.config(num_pairs=number)).pair_keys() for number in (2, 5))
    np.testing.assert_array_equal(jax.random.key_data(few), jax.random.key_data(many)[:2])
    assert len(np.unique(jax.random.key_data(many), axis=0)) == 5


@pytest.mark.quick
def test_draws_of_two_names_or_keys_differ_and_the_same_repeat():
    context, again = _context(), _context()
    draws = [
        context.rng().random(),
        context.rng("segments").random(),
        _context(key=jax.random.key(12)).rng().random(),
    ]
    assert len(set(draws)) == 3 and again.rng().random() == draws[0]
    data_of = [
        jax.random.key_data(keys).tolist()
        for keys in (context.pair_keys(), context.pair_keys("starts"), again.pair_keys())
    ]
    assert data_of[0] != data_of[1] and data_of[0] == data_of[2]


class _Recording:
    """A study that needs measurements which only write down the key they got."""

    def __init__(self, *names):
        self.id, self.names, self.keys = "G1", names, {}

    def needs(self, config):
        condition = conditions.condition(config, "mlp")
        return [Request(Measurement(name, self._measure), (condition,)) for name in self.names]

    def _measure(self, context):
        self.keys[len(self.keys)] = jax.random.key_data(context.key).tolist()
        return context.dataset({"nothing": (("pair",), np.zeros(NUM_PAIRS))})


def test_a_key_depends_on_seed_and_name_alone(tmp_path):
    def keys(folder, *names, seed=0):
        config = tiny_run.config(seed=seed)
        run = Run.create(tmp_path / folder, Identity("tiny", config.to_dict(), "none"), 2)
        run.save_population(_population(config))
        study = _Recording(*names)
        pipeline.measure(run, [study], POOL)
        return dict(zip(names, study.keys.values(), strict=True))

    alone = keys("alone", "second")
    among = keys("among", "third", "second", "first")
    assert among["second"] == alone["second"]
    assert len({tuple(key) for key in among.values()}) == 3
    assert keys("other", "second", seed=1)["second"] != alone["second"]
    expected = named_key(jax.random.key(0), "measurement", "second")
    assert alone["second"] == jax.random.key_data(expected).tolist()


# Labelled arrays


@pytest.mark.quick
def test_numbers_of_a_diverged_pair_are_undefined_and_outcomes_stay():
    population = _population()
    params = {"weight": population.params["weight"].at[1, 0].set(jnp.nan)}
    context = Context(KEY, (population.replace(params=params),), POOL, CONFIG)
    numbers = {
        "score": (("pair", "surrogate", "target"), np.ones((NUM_PAIRS, 2, 2), np.float32)),
        "constant": (("budget",), [1, 2]),
    }
    outcomes = {"fooled": (("pair", "example"), np.ones((NUM_PAIRS, 4), bool))}
    dataset = context.dataset(numbers, outcomes, budget=(0.1, 0.2))
    measured = Measured(dataset)
    assert measured.finite.tolist() == [True, False, True]
    assert dataset["score"].dtype == np.float64 and np.isfinite(dataset["score"]).all()
    score = measured.read("score", "pair", "target", surrogate="B")
    assert np.isnan(score).all(1).tolist() == [False, True, False]
    assert measured.read("constant", "budget").tolist() == [1, 2]
    fooled = measured.read("fooled", "example", "pair")
    assert fooled.dtype == bool and fooled.all() and fooled.shape == (4, NUM_PAIRS)
    assert dataset["surrogate"].values.tolist() == dataset["target"].values.tolist() == ["A", "B"]
    assert dataset["pair"].values.tolist() == [0, 1, 2]
    assert "model" not in dataset.coords and "example" not in dataset.coords


@pytest.mark.parametrize(
    ("name", "dims", "labels"),
    [
        ("other", ("pair",), {}),
        ("score", ("pair",), {}),
        ("score", ("pair", "example"), {}),
        ("score", ("pair",), {"model": "C"}),
    ],
)
def test_reading_refuses_what_is_not_there(name, dims, labels):
    measured = Measured(_context().dataset({"score": (("pair", "model"), np.ones((NUM_PAIRS, 2)))}))
    with pytest.raises(LookupError):
        measured.read(name, *dims, **labels)


def test_what_is_the_same_for_all_is_on_the_device_once():
    context = _context()
    assert context.shared is context.shared
    assert context.shared.images.shape == POOL.images.shape
    assert float(context.shared.epsilon) == pytest.approx(CONFIG.attack.epsilon)
    assert sharding.current().mesh.size == 2
