"""The figures of T9 draw what they are given."""

import numpy as np
import pytest
from support.drawings import assert_drawn_on_the_axes_given, words

from halfway.lab.studies.t9 import figures


def test_crossings_are_drawn_with_their_control():
    rng = np.random.default_rng(0)
    first = rng.uniform(0.2, 0.8, 500)
    ax = figures.crossings(first, first, rng.permutation(first))
    _, control, same = ax.get_lines()
    np.testing.assert_allclose(same.get_xdata(), same.get_ydata())
    assert np.ptp(control.get_ydata()) < 0.5 * np.ptp(same.get_ydata())
    with pytest.raises(ValueError, match=r"three equal \[N\]"):
        figures.crossings(first, first[:3], first)


def test_boundaries_in_a_plane_need_a_grid():
    x, y = np.arange(4), np.arange(3)
    decisions = np.array([[0, 0, 1, 1]] * 3)
    points = {"an example": (1.0, 1.0)}
    ax = figures.boundaries(x, y, {"A": decisions, "B": 0 * decisions}, points=points)
    assert "an example" in words(ax)
    for wrong in ({"A": decisions.T}, {str(i): decisions for i in range(4)}):
        with pytest.raises(ValueError, match="boundaries:"):
            figures.boundaries(x, y, wrong)


def test_every_figure_is_drawn_on_the_axes_given():
    values, pair = np.linspace(0.1, 0.9, 6), np.arange(6) % 2
    decisions = {"A": np.outer(pair, pair)}
    for draw in (
        lambda ax: figures.crossings(values, values, values, ax=ax),
        lambda ax: figures.boundaries(values, values, decisions, ax=ax),
    ):
        assert_drawn_on_the_axes_given(draw)
