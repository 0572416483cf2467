"""What T5 fits to transfer by overlap, and its figure."""

import numpy as np
import pytest
from lab.studies.plants import t5 as planted
from support.drawings import assert_drawn_on_the_axes_given, has_line

from halfway.lab.studies.t5 import figures, study


def test_a_planted_share_is_found_exactly():
    shares = np.array([-0.2, 0.0, 0.5, 0.67, 1.0])
    curves = np.stack([planted.levels(share) for share in shares])
    np.testing.assert_allclose(study.linear_share(curves), shares, atol=1e-12)


def test_the_share_is_that_of_least_squares():
    rng, overlaps = np.random.default_rng(0), np.array(study.OVERLAPS)
    coefficients = planted.levels(0.7) + rng.normal(0, 0.02, 5)
    rise = coefficients[-1] - coefficients[0]
    design = rise * (overlaps - overlaps**2)[1:-1, None]
    goal = (coefficients - coefficients[0] - rise * overlaps**2)[1:-1]
    (expected,), *_ = np.linalg.lstsq(design, goal, rcond=None)
    np.testing.assert_allclose(study.linear_share(coefficients), expected)


def test_without_a_rise_there_is_no_share():
    assert np.isnan(study.linear_share(np.full(5, 0.6)))
    assert np.isnan(study.linear_share(planted.levels(0.5)[::-1]))


def test_share_of_the_seed_by_hand():
    # Noise over signal: 1 without shared data, ¼ with all shared.
    np.testing.assert_allclose(study.seed_share(np.array([0.5, 0.6, 0.6, 0.7, 0.8])), 0.25)
    assert np.isnan(study.seed_share(np.array([-0.1, 0.6, 0.6, 0.7, 0.8])))
    assert np.isnan(study.seed_share(np.array([0.5, 0.6, 0.6, 0.7, 1.0])))


def test_where_shared_data_add_nothing_nothing_is_decided(monkeypatch):
    monkeypatch.setattr(planted, "LEVELS", (0.63, 0.64))
    outcome = study.decide(planted.plant(np.random.default_rng(0), 1.0))
    gates = [part for part in outcome.parts if part.kind == "gate"]
    assert [part.passed for part in gates] == [False]


def _curve(**options):
    coefficients = planted.levels(0.5)[:, None] + np.array([0.0, -0.01, 0.01])
    return figures.overlap_curve(
        study.OVERLAPS, coefficients, share=0.8, threshold=study.HALF, **options
    )


def test_points_and_curves_meet_at_the_ends():
    ax = _curve()
    start, end = planted.LEVELS
    assert has_line(ax, np.stack([study.OVERLAPS, planted.levels(0.5)], 1))
    for line in ax.get_lines()[:3]:
        np.testing.assert_allclose(line.get_ydata()[[0, -1]], [start, end])
    middle = [line.get_ydata()[50] for line in ax.get_lines()[:3]]
    rise = end - start
    np.testing.assert_allclose(middle, start + rise * np.array([0.5, 0.375, 0.45]))
    with pytest.raises(ValueError, match="overlap_curve"):
        figures.overlap_curve([0.0, 1.0], np.zeros((3, 3)), share=1.0, threshold=0.5)


def test_the_curve_is_drawn_on_the_axes_given():
    assert_drawn_on_the_axes_given(lambda ax: _curve(ax=ax))
