"""The figures of G8 draw what they are given."""

import numpy as np
import pytest
from lab.studies.plants import g8 as planted
from support import plants
from support.drawings import assert_inside, blue, has_line, words

from halfway.lab.studies.g8 import study
from halfway.lab.studies.g8.figures import gap_path, memorization
from halfway.lab.studies.g8.gap_paths import DESCENT_GAP, WALK_GAP
from halfway.lab.study import family
from halfway.lab.study.records import Records


def test_memorization_draws_a_line_a_rate_and_fresh_data_in_each_axes():
    lines = [np.array([0.0, 0.5]), np.array([0.1, 0.3])]
    low = [line - 0.1 for line in lines]
    high = [np.array([0.1, np.inf]), lines[1] + 0.1]
    sizes = {10: lines, 20: lines[::-1]}
    axes = memorization(
        [1, 8],
        sizes,
        dict.fromkeys(sizes, low),
        dict.fromkeys(sizes, high),
        rates=[0, 0.4],
        marked={10: 8, 20: 2},
        fresh=(0.01, -0.02, 0.04),
    )
    assert [ax.get_title() for ax in axes] == ["n = 10", "n = 20"]
    for ax, first, at in zip(axes, (lines[0], lines[1]), (8, 2), strict=True):
        assert has_line(ax, [[at, 0], [at, 1]])
        np.testing.assert_allclose(blue(ax), first)
        assert has_line(ax, [[1, 0.01], [8, 0.01]])
        assert {"ρ = 0", "ρ = 0.4", "fresh data"} <= set(words(ax))
    assert_inside(axes[0].figure)
    with pytest.raises(ValueError, match="4 lines"):
        memorization([1, 8], sizes, sizes, sizes, rates=[0, 0.1, 0.2, 0.3])


def test_lines_of_memorization_are_named_at_their_ends_on_a_shared_scale():
    low = {1: [np.array([0.0, 0.5])], 2: [np.array([0.0, 5.0])]}
    axes = memorization([1, 8], low, low, low, rates=[0])
    axes[0].figure.canvas.draw()
    for ax, end in zip(axes, (0.5, 5.0), strict=True):
        least, most = ax.get_ylim()
        (name,) = ax.texts
        assert name.xy[1] == pytest.approx((end - least) / (most - least), abs=0.01)


def test_gap_path_draws_the_measured_gap_and_the_sum_of_its_steps():
    gap = np.array([[0.0, 1.0, 3.0], [0.0, 2.0, 3.0], [np.nan] * 3])
    axes = gap_path({"a": ([0, 5, 10], gap, gap + 1), "b": ([0, 1, 2], gap, gap)})
    assert [ax.get_title() for ax in axes] == ["a", "b"]
    assert has_line(axes[0], [[0, 0], [5, 1.5], [10, 3]])
    assert has_line(axes[0], [[0, 1], [5, 2.5], [10, 4]])
    assert {"measured", "summed"} <= set(words(axes[0]))
    assert_inside(axes[0].figure)


def test_the_gap_is_drawn_and_told_where_it_was_measured():
    records = planted.plant(np.random.default_rng(8), 1.0)
    outcomes = [(study.STUDY, study.decide(records))]
    (verdict,) = family.conclude(outcomes, family_size=1, evidence="exploratory")
    assert [figure.name for figure in study.figures(records, verdict)] == ["g8_memorization"]
    datasets = dict(records.datasets)
    dims = "pair", "model", "step"
    conditions = study.paths(plants.CONFIG)
    for measurement, condition in zip((DESCENT_GAP, WALK_GAP), conditions, strict=True):
        gap = np.arange(3.0) * np.ones((condition.num_pairs, 2, 1))
        gap[2:] = np.nan  # not followed
        numbers = {"gap": (dims, gap), "summed": (dims, 1.5 * gap)}
        made = plants.dataset(condition, numbers, step=[0, 10, 20])
        datasets[measurement.name, condition.id] = made
    figures = study.figures(Records(records.config, datasets), verdict)
    assert [figure.name for figure in figures] == ["g8_memorization", "g8_gap"]
    assert figures[1].caption.endswith("2.00 and 3.00; 2.00 and 3.00.")
    assert "n = 150" in figures[1].caption
    first, second = figures[1].figure.axes
    assert first.get_title() == "gradient descent" and second.get_title().startswith("adam")
    for ax in (first, second):
        assert has_line(ax, [[0, 0], [10, 1], [20, 2]])
        assert has_line(ax, [[0, 0], [10, 1.5], [20, 3]])
