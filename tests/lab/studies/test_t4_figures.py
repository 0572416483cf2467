"""The figure of T4 draws what it is given."""

import numpy as np
import pytest
from support.drawings import assert_drawn_on_the_axes_given, has_line, words

from halfway.lab.studies.t4.figures import half_ways

STEPS = np.array([0, 1, 2])
CURVES = {
    "a": np.array([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0], [np.nan] * 3]),
    "b": np.array([[0.0, 0.5, 0.5], [0.0, 0.5, 0.5], [0.0, 9.0, 9.0]]),
}
HALF_STEPS = {"a": [1.0, 1.5, np.nan], "b": [0.5, 0.5, np.nan]}


def test_curves_are_counted_from_the_start_and_marked_at_half():
    ax = half_ways(STEPS, CURVES, HALF_STEPS, reference="b")
    assert has_line(ax, [[0, 0], [1, 1.5], [2, 3]])
    assert has_line(ax, [[0, 0], [1, 0.5], [2, 0.5]])
    assert has_line(ax, [[1.25, 1.5]]) and has_line(ax, [[0.5, 0.25]])
    assert has_line(ax, [[1.25, 0], [1.25, 1.5]])
    assert set(words(ax)) == {"a", "b"}


def test_without_a_finite_pair_there_is_nothing_to_draw():
    with pytest.raises(ValueError, match="half_ways: no pair"):
        half_ways(STEPS, {"a": CURVES["a"][2:]}, {"a": [np.nan]})


def test_half_ways_are_drawn_on_the_axes_given():
    assert_drawn_on_the_axes_given(lambda ax: half_ways(STEPS, CURVES, HALF_STEPS, ax=ax))
