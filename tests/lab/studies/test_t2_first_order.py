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

from halfway import attacks, stats, transfer
from halfway.lab.measurements.context import MODELS, Context
from halfway.lab.measurements.transfer import TRANSFER
from halfway.lab.studies.t2 import concordance, study
from halfway.lab.studies.t2.measure import FIRST_ORDER
from halfway.lab.study.records import Measured, Records

# Trained well enough for some attacks to transfer and some not to.
CONFIG = tiny_run.config(
    num_pairs=3, num_examples=100, num_holdout=120, training={"probe_steps": (0, 150)}
)
CONDITION = study.decided_on(CONFIG)
DIRECTED = "pair", "surrogate", "example"
NAMES = "score", "tau", "target_norm"
KEY = jax.random.key(11)


@pytest.fixture(scope="module")
def trained(train):
    return train(CONDITION)


@pytest.fixture(scope="module")
def predicted(trained, pool):
    return Measured(FIRST_ORDER.measure(Context(KEY, (trained,), pool, CONFIG)))


# The measurement


def test_predictions_are_the_library_called_pair_by_pair(predicted, trained, pool):
    threat = attacks.linf(CONFIG.attack.epsilon)

    @jax.jit
    def direct(surrogate, target, x, labels):
        fns = (functools.partial(CONDITION.apply_fn, model) for model in (surrogate, target))
        return transfer.first_order(*fns, x, labels, threat=threat)

    @jax.jit
    def norm(target, x, labels):
        gradient = transfer.input_gradients(
            functools.partial(CONDITION.apply_fn, target), x, labels
        )
        return jnp.abs(gradient.reshape(len(x), -1)).sum(-1)

    for p, d in np.ndindex(CONFIG.num_pairs, 2):
        rows = np.asarray(trained.halves.s.indices[p])
        np.testing.assert_array_equal(predicted.read("row", "pair", "example")[p], rows)
        x, labels = jnp.asarray(pool.images[rows]), jnp.asarray(pool.labels[rows])
        models = [
            jax.tree.map(lambda leaf, at=(p, k): leaf[at], trained.params) for k in (d, 1 - d)
        ]
        expected = direct(*models, x, labels)._asdict()
        expected["target_norm"] = norm(models[1], x, labels)
        for name in NAMES:
            measured = predicted.read(name, *DIRECTED)
            assert measured.shape == (CONFIG.num_pairs, 2, CONFIG.num_holdout)
            np.testing.assert_allclose(measured[p, d], expected[name], rtol=1e-4, atol=1e-4)
    score, tau, size = (predicted.read(name, *DIRECTED) for name in NAMES)
    np.testing.assert_allclose(tau * size, score, rtol=1e-4, atol=1e-5)


def test_a_diverged_pair_moves_no_other(predicted, trained, pool):
    params = jax.tree.map(lambda leaf: leaf.at[1].set(jnp.nan), trained.params)
    context = Context(KEY, (trained.replace(params=params),), pool, CONFIG)
    broken = Measured(FIRST_ORDER.measure(context))
    assert broken.finite.tolist() == [True, False, True]
    for name in NAMES:
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
    """Planted records in which one pair diverged, and some τ are undefined."""
    made = planted.plant(np.random.default_rng(0), 1.0)
    for dataset in made.datasets.values():
        dataset["finite"][5] = False
    predicted = made.datasets[FIRST_ORDER.name, study.decided_on(made.config).id]
    predicted["tau"][2, 1, :7] = np.nan
    return made


def _measured(records):
    condition = study.decided_on(records.config)
    return records.get(TRANSFER, condition), records.get(FIRST_ORDER, condition)


@pytest.fixture(scope="module")
def examples(records):
    return study.outcomes(*_measured(records))


def test_examples_are_read_from_the_cells_of_their_direction(records, examples):
    attacked, predicted = _measured(records)
    for d, (surrogate, target) in enumerate(itertools.permutations(MODELS)):
        models = attacked["clean_correct"]
        right = models.sel(model=surrogate).values & models.sel(model=target).values
        eligible = right & np.isfinite(predicted["tau"].sel(surrogate=surrogate).values)
        np.testing.assert_array_equal(examples.eligible[:, d], eligible)
        fooled = attacked["fooled"].sel(surrogate=surrogate, target=target)
        np.testing.assert_array_equal(examples.fooled[:, d], fooled)
        loss = attacked["clean_loss"].sel(model=target)
        np.testing.assert_array_equal(examples.target_loss[:, d], loss)
        for name in NAMES:
            values = predicted[name].sel(surrogate=surrogate)
            np.testing.assert_array_equal(getattr(examples, name)[:, d], values)
    assert not examples.eligible[2, 1, :7].any()
    assert 0.9 < examples.eligible.mean() < 0.98


def test_scores_by_hand(examples):
    scores = study.scores_of(examples, 0.1)
    place = 3, 1, 17
    loss, norm = examples.target_loss[place], examples.target_norm[place]
    assert scores["aligned"][place] == loss + 0.1 * examples.score[place]
    assert (scores["distance"][place], scores["margin"][place]) == (loss / norm, loss)


def test_areas_are_the_counts_of_the_library_summed_over_directions(examples):
    for within_bins in (False, True):
        area = study.areas(examples, examples.tau, within_bins=within_bins)
        assert np.flatnonzero(np.isnan(area.concordant)).tolist() == [5]
        expected = np.zeros(2)
        for d in range(2):
            rows = np.flatnonzero(examples.eligible[2, d])
            loss, norm = examples.target_loss[2, d, rows], examples.target_norm[2, d, rows]
            strata = np.zeros(len(rows), int)
            if within_bins:
                outer = loss.argsort().argsort() * 5 // len(rows)
                for bin_ in range(5):
                    inside = outer == bin_
                    inner = norm[inside].argsort().argsort() * 5 // inside.sum()
                    strata[inside] = 5 * bin_ + inner
            scores, fooled = examples.tau[2, d, rows], examples.fooled[2, d, rows]
            expected += stats.auc(scores, fooled, strata)
        np.testing.assert_allclose([area.concordant[2], area.comparable[2]], expected)


def test_comparisons_of_each_example_by_counting():
    rng = np.random.default_rng(1)
    scores, positive = rng.integers(0, 6, 60), rng.random(60) < 0.4  # with ties
    strata = rng.integers(0, 4, 60) * 7
    positive[strata == 7] = True  # a stratum of one kind is never compared
    counts = concordance.example_counts(scores, positive, strata)
    concordant, comparable = np.zeros((2, 60))
    for i, j in itertools.product(np.flatnonzero(positive), np.flatnonzero(~positive)):
        if strata[i] == strata[j]:
            agree = (scores[i] > scores[j]) + 0.5 * (scores[i] == scores[j])
            concordant[[i, j]] += agree
            comparable[[i, j]] += 1
    np.testing.assert_array_equal(counts.concordant, concordant)
    np.testing.assert_array_equal(counts.comparable, comparable)
    assert concordance.example_counts([], []).comparable.shape == (0,)
    alone = concordance.example_counts([1.0, 2.0], [True, True])
    assert not alone.comparable.any() and not alone.concordant.any()


def test_what_examples_add_is_what_leaving_them_out_does(examples):
    """To first order: the bins stay as they are, and so do the pairs' own AUCs."""
    scores = study.scores_of(examples, 0.1)

    def without(row):
        left = examples.eligible & (examples.rows != row)[:, None]
        return [study.areas(examples._replace(eligible=left), scores[n]) for n in both]

    both = "aligned", "distance"
    areas = [study.areas(examples, scores[name]) for name in both]
    (pooled, added), (difference, added_difference) = (
        study.pooled_values(areas[0]),
        study.difference_values(*areas),
    )
    rows = np.flatnonzero(np.abs(added) > 0.5 * np.nanmax(np.abs(added)))[:4]
    for row in rows:
        left = without(row)
        changed = np.nanmean(pooled) - np.nanmean(study.pooled_values(left[0])[0])
        np.testing.assert_allclose(added[row], changed, rtol=0.1)
        changed = np.nanmean(difference) - np.nanmean(study.difference_values(*left)[0])
        np.testing.assert_allclose(added_difference[row], changed, rtol=0.15, atol=1e-6)
    for values in (added, added_difference):
        np.testing.assert_allclose(np.nansum(values), 0.0, atol=1e-9)


@pytest.mark.quick
def test_bins_hold_equal_numbers_and_are_nested():
    rng = np.random.default_rng(0)
    first, second = rng.permutation(12.0 * np.arange(13)), rng.normal(size=13)
    outer = concordance.equal_bins(first, 5)
    assert np.bincount(outer).tolist() == [3, 3, 2, 3, 2]
    assert (np.diff(outer[np.argsort(first)]) >= 0).all()
    nested = concordance.nested_bins(first, second, 2)
    np.testing.assert_array_equal(nested // 2, concordance.equal_bins(first, 2))
    for place in range(2):
        inside = nested // 2 == place
        inner = nested[inside] % 2
        assert second[inside][inner == 0].max() < second[inside][inner == 1].min()
    assert concordance.equal_bins(np.empty(0), 5).shape == (0,)
