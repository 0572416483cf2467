"""Barriers between models, against the landscape evaluated point by point."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lab.studies.plants import g6 as planted
from support import tiny_run

from halfway import losses
from halfway.lab.measurements.context import Context
from halfway.lab.studies.g6 import study
from halfway.lab.studies.g6.measure import BARRIERS, LOSSES, MATCHED, RAW
from halfway.lab.study.records import Measured, Records

CONFIG = tiny_run.config(training={"probe_steps": (0, 30)})
# Without the trunk, which would be a program of its own to train.
CONDITIONS = study.compared(CONFIG, "mlp")[:2]
PAIR = CONFIG.num_pairs - 1


@pytest.fixture(scope="module")
def trained(train):
    return tuple(map(train, CONDITIONS))


def _measure(trained, pool):
    return Measured(BARRIERS.measure(Context(jax.random.key(6), trained, pool, CONFIG)))


@pytest.fixture(scope="module")
def barriers(trained, pool):
    return _measure(trained, pool)


def test_paths_are_named_after_what_their_models_share(barriers):
    assert barriers.dataset["path"].values.tolist() == [RAW, MATCHED, "shared start"]
    longer = tiny_run.config(training={"probe_steps": (0, 60)})
    assert study.described(CONFIG) == ("shared start", "shared trunk of 30 steps")
    assert study.described(longer) == ("shared start", "shared trunk of 50 steps")


def test_curves_are_losses_on_clean_s_between_the_ends(barriers, trained, pool):
    first = trained[0]
    rows = np.asarray(first.halves.s.indices[PAIR])
    images, labels = jnp.asarray(pool.images[rows]), jnp.asarray(pool.labels[rows])
    logits_fn = jax.jit(first.apply_fn)
    t = barriers.dataset["t"].values
    for path, population in {RAW: first, "shared start": trained[1]}.items():
        start, end = (
            jax.tree.map(lambda leaf, side=side: leaf[PAIR, side], population.params)
            for side in range(2)
        )
        for index in (0, 7, len(t) - 1):
            share = t[index]
            params = jax.tree.map(lambda a, b, s=share: (1 - s) * a + s * b, start, end)
            logits = logits_fn(params, images)
            expected = {
                "error": (np.asarray(logits).argmax(-1) != np.asarray(labels)).mean(),
                "cross_entropy": losses.cross_entropy(logits, labels).mean(),
            }
            for loss in LOSSES:
                curve = barriers.read("curve", "pair", "t", path=path, loss=loss)
                np.testing.assert_allclose(curve[PAIR, index], expected[loss], rtol=1e-4)


def test_a_barrier_is_the_highest_point_above_a_baseline(barriers):
    curves = barriers.read("curve", "pair", "path", "loss", "t")
    t = barriers.dataset["t"].values
    first, last = curves[..., :1], curves[..., -1:]
    baselines = {"linear": (1 - t) * first + t * last, "endpoints": (first + last) / 2}
    for name, baseline in baselines.items():
        heights = barriers.read("barrier", "pair", "path", "loss", baseline=name)
        np.testing.assert_allclose(heights, (curves - baseline).max(-1), atol=1e-6)
    heights = barriers.read("barrier", "pair", "path", loss="error", baseline="linear")
    for path in (RAW, MATCHED):
        place = barriers.dataset["path"].values.tolist().index(path)
        np.testing.assert_array_equal(study.barrier(barriers, path), heights[:, place])


def test_matching_keeps_what_the_models_compute_and_lowers_the_barrier(barriers):
    raw, matched = (
        barriers.read("curve", "pair", "t", path=path, loss="cross_entropy")
        for path in (RAW, MATCHED)
    )
    np.testing.assert_allclose(matched[:, [0, -1]], raw[:, [0, -1]], rtol=1e-4)
    assert (matched.max(-1) < raw.max(-1)).all()


def test_chance_names_the_largest_class_of_s(barriers, trained, pool):
    rows = np.asarray(trained[0].halves.s.indices)
    for chance, labels in zip(barriers.read("chance"), np.asarray(pool.labels)[rows], strict=True):
        _, counts = np.unique(labels, return_counts=True)
        assert chance == pytest.approx(1 - counts.max() / labels.size)
    curve = barriers.read("curve", "pair", "t", path=RAW, loss="error")
    np.testing.assert_allclose(study.end_error(barriers), (curve[:, 0] + curve[:, -1]) / 2)


def test_untrained_ends_settle_nothing():
    records = planted.plant(np.random.default_rng(0), 1.5)
    outcome = study.decide(records)
    assert all(part.passed for part in outcome.parts)
    for dataset in records.datasets.values():
        dataset["chance"][:] = planted.ERROR / 0.95
    parts = study.decide(Records(records.config, records.datasets)).parts
    unmet = [part.name for part in parts if not part.passed]
    assert unmet == ["mlp, learned", "cnn, learned"]


def test_a_pair_that_diverged_has_no_barrier(trained, pool, barriers):
    first, *others = trained
    params = jax.tree.map(lambda leaf: leaf.at[1, 0].set(jnp.nan), first.params)
    broken = _measure((first.replace(params=params), *others), pool)
    for path in (RAW, "shared start"):
        heights = study.barrier(broken, path)
        assert np.isnan(heights).tolist() == [False, True, False]
        np.testing.assert_array_equal(heights[[0, 2]], study.barrier(barriers, path)[[0, 2]])
