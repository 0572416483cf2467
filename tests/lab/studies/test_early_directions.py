"""Alignment of two models along the first steps, against models taken from the walk one by one."""

import dataclasses
import functools
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import tiny_run

from halfway import attacks, losses, meeting, plots, populations
from halfway.lab.studies.t4 import measure as early_directions
from halfway.lab.studies.t4 import study as t4
from halfway.lab.studies.t4.measure import EARLY_DIRECTIONS
from halfway.lab.study import plants
from halfway.lab.study.conditions import condition

NUM_PAIRS = 3  # on two devices: the padding must not show
NUM_EXAMPLES = 25  # of the 40 of S
KEY = jax.random.key(4)


CONFIG = tiny_run.config(num_pairs=NUM_PAIRS, training={"probe_steps": (0, 6)})
ONE = condition(CONFIG, "mlp")


@pytest.fixture(scope="module")
def pool(digits):
    return digits.pool(CONFIG.subset)


@pytest.fixture(scope="module")
def measured(pool):
    """Of a population of which no more than the condition is looked at."""
    population: Any = types.SimpleNamespace(condition=ONE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(early_directions, "NUM_EXAMPLES", NUM_EXAMPLES)
        early_directions._probe.cache_clear()
        yield EARLY_DIRECTIONS.measure(KEY, [population], pool, CONFIG)
    early_directions._probe.cache_clear()


def test_steps_end_with_training():
    assert early_directions.steps_of(ONE) == tuple(range(7))
    longer = dataclasses.replace(ONE, probe_steps=(0, 50, 700))
    assert early_directions.steps_of(longer) == tuple(range(101))


@jax.jit
def _looked_at(params, x, y):
    """Input gradients, perturbations and accuracy of one model."""

    def logits_fn(z):
        return ONE.apply_fn(params, z)

    gradient = jax.grad(lambda z: losses.margin(logits_fn(z), y).sum())(x)
    found = attacks.pgd(
        logits_fn,
        KEY,
        x,
        y,
        threat=attacks.linf(0.1),
        loss_fn=losses.margin,
        num_steps=3,
        relative_step=0.15,
    )
    return gradient, found.adversarial - x, (logits_fn(x).argmax(-1) == y).mean()


def test_curves_are_those_of_the_walk_s_models(measured, pool):
    images, labels = jnp.asarray(pool.images, jnp.float32), jnp.asarray(pool.labels, jnp.int32)
    walk = populations.retrace(ONE, pool, steps=(0, 4), num_pairs=NUM_PAIRS)
    draw = functools.partial(populations.draw_pair, program=populations.program_of(ONE))
    keys = populations.pair_keys(ONE)
    for p in (0, NUM_PAIRS - 1):
        rows = draw(keys[p], labels, populations.settings_of(ONE)).halves.s.indices[:NUM_EXAMPLES]
        for place, step in enumerate((0, 4)):
            (*u, right_a), (*v, right_b) = (
                _looked_at(
                    jax.tree.map(lambda leaf, i=(p, side, place): leaf[i], walk),
                    images[rows],
                    labels[rows],
                )
                for side in range(2)
            )
            for name, own, other in zip(early_directions.DIRECTIONS, u, v, strict=True):
                expected = float(meeting.alignment(own, other))
                np.testing.assert_allclose(measured.arrays[name][p, step], expected, atol=2e-3)
            expected = (right_a + right_b) / 2
            np.testing.assert_allclose(measured.arrays["accuracy"][p, step], expected, atol=1e-6)


def test_there_is_a_curve_for_each_pair_and_its_ends_are_in_the_table(measured):
    assert measured.arrays["step"].tolist() == list(range(7))
    for name in ("gradient", "perturbation", "accuracy"):
        curve = measured.arrays[name]
        assert curve.shape == (NUM_PAIRS, 7) and np.isfinite(curve).all()
        rows = measured.table[measured.table["quantity"] == f"early_{name}"]
        expected = curve[:, [0, -1]].ravel()
        np.testing.assert_array_equal(rows["value"].to_numpy(), expected)
        assert rows["step"].unique().tolist() == [0, 6]


def test_alignment_is_a_ratio_of_sums_and_undefined_without_a_direction():
    u, v = np.array([[3.0, 0.0], [0.0, 4.0]]), np.array([[3.0, 4.0], [0.0, 0.0]])
    inner, square = (u * v).sum(), np.array([(u**2).sum(), (v**2).sum()])
    found = early_directions.alignment(np.full((1, 2, 1), inner), square.reshape(1, 2, 1))
    np.testing.assert_allclose(found, [[9 / 25]])
    assert np.isnan(early_directions.alignment(np.zeros((1, 2, 1)), np.zeros((1, 2, 1)))).all()


def test_the_two_models_of_a_pair_change_places():
    inner = jax.vmap(early_directions._of_the_other, axis_name=populations.MODEL)
    swapped = jax.vmap(inner)(jnp.arange(6.0).reshape(3, 2))
    assert swapped.tolist() == [[1, 0], [3, 2], [5, 4]]


# When half is done


def test_half_step_by_hand():
    steps = np.array([0, 1, 2, 4])
    curves = np.array(
        [
            [0.0, 0.25, 0.75, 1.0],  # ½ between the steps 1 and 2
            [1.0, 1.0, 2.0, 5.0],  # 3 a third of the way from 2 to 4
            [0.0, 0.5, 0.2, 1.0],  # at step 1, and left again: the first time counts
            [0.0, 3.0, 1.0, 2.0],  # beyond its end in the first step
            [0.5, 0.9, 0.9, 0.5],  # no gain
            [0.5, 0.9, 0.9, 0.4],
            [0.0, np.nan, 0.5, 1.0],
        ]
    )
    expected = [1.5, 2 + 2 / 3, 1.0, 1 / 3, np.nan, np.nan, np.nan]
    np.testing.assert_allclose(t4.half_step(curves, steps), expected)
    # Neither where a curve begins nor its scale matters.
    np.testing.assert_allclose(t4.half_step(7 * curves - 3, steps), expected)


def test_planted_curves_are_half_way_where_they_should_be():
    records = t4.STUDY.plant(np.random.default_rng(0), 1.0)
    _, _, halves = t4.read(records)
    # The curves end short of their limit, so a little earlier than planted.
    assert abs(halves["accuracy"].mean() - 10) < 0.7
    difference = (halves["gradient"] - halves["accuracy"]).mean()
    assert abs(difference + t4.PLANTED) < 1.2


def test_a_pair_without_a_gain_is_left_out_and_said():
    records = t4.STUDY.plant(np.random.default_rng(0), 1.0)
    ((place, arrays),) = records.arrays.items()
    flat = arrays["gradient"].copy()
    flat[5] = flat[5, 0]
    changed = dataclasses.replace(records, arrays={place: dict(arrays) | {"gradient": flat}})
    outcome = t4.STUDY.decide(changed)
    assert (outcome.parts[0].num_pairs, outcome.parts[0].num_excluded) == (15, 1)
    assert "in 1 of 16 pairs the alignment of input gradients" in outcome.warnings[0]
    assert not t4.STUDY.decide(records).warnings
    assert plants.CONFIG.num_pairs == 16


# The figure


def test_figure_counts_from_the_start_and_marks_half():
    steps = np.array([0, 1, 2])
    curves = {"a": np.array([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0], [np.nan] * 3])}
    curves["b"] = np.array([[0.0, 0.5, 0.5], [0.0, 0.5, 0.5], [0.0, 9.0, 9.0]])
    halves = {"a": [1.0, 1.5, np.nan], "b": [0.5, 0.5, np.nan]}
    ax = plots.half_ways(steps, curves, halves, reference="b")
    lines = [np.transpose(line.get_data()).tolist() for line in ax.lines]
    assert [[0, 0], [1, 1.5], [2, 3]] in lines
    assert [[0, 0], [1, 0.5], [2, 0.5]] in lines
    assert [[1.25, 1.5]] in lines and [[0.5, 0.25]] in lines
    assert [[1.25, 0], [1.25, 1.5]] in lines
    assert {text.get_text() for text in ax.texts} == {"a", "b"}
    with pytest.raises(ValueError, match="no pair"):
        plots.half_ways(steps, {"a": curves["a"][2:]}, {"a": [np.nan]})
