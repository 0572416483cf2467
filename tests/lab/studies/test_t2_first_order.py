"""First-order predictions against the library called pair by pair, and what T2 makes of them."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lab.studies.plants import t2 as planted
from support import tiny_run

from halfway import attacks, transfer
from halfway.lab.measurements.context import MODELS, Context
from halfway.lab.measurements.transfer import TRANSFER
from halfway.lab.studies.t2 import study
from halfway.lab.studies.t2.measure import FIRST_ORDER
from halfway.lab.study.records import Measured, Records

# Of the shape that other tests train too.
CONFIG = tiny_run.config(training={"probe_steps": (0, 30)})
CONDITION = study.decided_on(CONFIG)
DIRECTED = "pair", "surrogate", "example"
KEY = jax.random.key(11)


@pytest.fixture(scope="module")
def trained(train):
    return train(CONDITION)


@pytest.fixture(scope="module")
def predicted(trained, pool):
    return Measured(FIRST_ORDER.measure(Context(KEY, (trained,), pool, CONFIG)))


# The measurement


def test_predictions_are_the_library_called_pair_by_pair(predicted, trained, pool):
    @jax.jit
    def direct(surrogate, target, x, labels):
        return transfer.first_order(
            functools.partial(CONDITION.apply_fn, surrogate),
            functools.partial(CONDITION.apply_fn, target),
            x,
            labels,
            threat=attacks.linf(CONFIG.attack.epsilon_calibration),
        )

    mean = predicted.read("mean_tau", "pair", "surrogate")
    for p, d in np.ndindex(CONFIG.num_pairs, 2):
        rows = np.asarray(trained.halves.s.indices[p])
        x, labels = jnp.asarray(pool.images[rows]), jnp.asarray(pool.labels[rows])
        models = [
            jax.tree.map(lambda leaf, at=(p, k): leaf[at], trained.params) for k in (d, 1 - d)
        ]
        expected = direct(*models, x, labels)._asdict()
        for name, values in expected.items():
            measured = predicted.read(name, *DIRECTED)
            assert measured.shape == (CONFIG.num_pairs, 2, CONFIG.num_holdout)
            np.testing.assert_allclose(measured[p, d], values, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(mean[p, d], np.mean(expected["tau"]), rtol=1e-5, atol=1e-6)


def test_a_diverged_pair_is_undefined_and_moves_no_other(predicted, trained, pool):
    params = jax.tree.map(lambda leaf: leaf.at[1].set(jnp.nan), trained.params)
    context = Context(KEY, (trained.replace(params=params),), pool, CONFIG)
    broken = Measured(FIRST_ORDER.measure(context))
    mean = broken.read("mean_tau", "pair", "surrogate")
    assert np.isnan(mean).all(-1).tolist() == [False, True, False]
    for name in transfer.FirstOrder._fields:
        values, whole = (part.read(name, *DIRECTED) for part in (broken, predicted))
        np.testing.assert_array_equal(values[[0, 2]], whole[[0, 2]])


def test_the_rule_reads_what_is_measured(predicted, trained, pool):
    attacked = TRANSFER.measure(Context(KEY, (trained,), pool, CONFIG))
    place = CONDITION.id
    datasets = {(TRANSFER.name, place): attacked, (FIRST_ORDER.name, place): predicted.dataset}
    for part in study.decide(Records(CONFIG, datasets)).parts:
        assert math.isfinite(part.estimate)
        assert (part.num_pairs, part.num_excluded) == (CONFIG.num_pairs, 0)


# What the rule makes of it


@pytest.fixture(scope="module")
def records():
    """Planted records in which clean images are misclassified too, and one pair diverged."""
    rng = np.random.default_rng(0)
    made = planted.plant(rng, 1.0)
    condition = study.decided_on(made.config)
    attacked = made.datasets[TRANSFER.name, condition.id]
    shape = attacked["clean_correct"].shape
    attacked["clean_correct"] = attacked["clean_correct"].dims, rng.random(shape) < 0.9
    for dataset in made.datasets.values():
        dataset["finite"][5] = False
    return made


def _measured(records):
    condition = study.decided_on(records.config)
    return records.get(TRANSFER, condition), records.get(FIRST_ORDER, condition)


def test_examples_are_read_from_the_cells_of_their_direction(records):
    attacked, predicted = _measured(records)
    examples = study.outcomes(attacked, predicted)
    for d, (surrogate, target) in enumerate(itertools.permutations(MODELS)):
        models = attacked["clean_correct"]
        right = models.sel(model=surrogate).values & models.sel(model=target).values
        fooled = attacked["fooled"].sel(surrogate=surrogate)
        eligible = right & fooled.sel(target=surrogate).values
        np.testing.assert_array_equal(examples.eligible[:, d], eligible)
        np.testing.assert_array_equal(examples.fooled[:, d], fooled.sel(target=target))
        loss = attacked["clean_loss"].sel(model=target)
        np.testing.assert_array_equal(examples.target_loss[:, d], loss)
        for name in ("score", "predicted", "actual"):
            values = predicted[name].sel(surrogate=surrogate)
            np.testing.assert_array_equal(getattr(examples, name)[:, d], values)
    assert 0 < examples.eligible.mean() < 0.45


def test_sums_of_one_pair_by_counting(records):
    examples, pair = study.outcomes(*_measured(records)), 2
    pooled, stratified, slope = np.zeros((3, 2))
    for d in range(2):
        rows = np.flatnonzero(examples.eligible[pair, d])
        score, fooled = examples.score[pair, d, rows], examples.fooled[pair, d, rows]
        labels = examples.labels[pair, rows]
        rank = examples.target_loss[pair, d, rows].argsort().argsort()
        bins = rank * study.NUM_BINS // len(rows)
        for i, j in itertools.product(np.flatnonzero(fooled), np.flatnonzero(~fooled)):
            counted = np.array([score[i] > score[j], 1.0])
            pooled += counted
            stratified += counted * ((labels[i], bins[i]) == (labels[j], bins[j]))
        x, y = examples.predicted[pair, d], examples.actual[pair, d]
        slope += np.cov(x, y)[0, 1] * (len(x) - 1), np.var(x) * len(x)
    sums = study.sums(examples)
    for terms, expected in zip(sums, (pooled, stratified, slope), strict=True):
        np.testing.assert_allclose([column[pair] for column in terms], expected)
        for column in terms:
            assert np.flatnonzero(np.isnan(column)).tolist() == [5]


@pytest.mark.quick
def test_margin_bins_hold_equal_numbers():
    loss = np.random.default_rng(0).permutation(12.0 * np.arange(13))
    bins = study.margin_bins(loss)
    assert np.bincount(bins).tolist() == [3, 3, 2, 3, 2]
    assert (np.diff(bins[np.argsort(loss)]) >= 0).all()
    assert study.margin_bins(np.empty(0)).shape == (0,)
