"""The figure of T4 draws what it is given."""

import numpy as np
import pytest
from support.drawings import assert_drawn_on_the_axes_given, has_line, words

from halfway.lab.studies.t4.figures import early_gains

STEPS = np.array([0, 1, 2])
CURVES = {
    "a": np.array([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0], [np.nan] * 3]),
    "b": np.array([[0.0, 0.05, 1.0], [0.0, 0.05, 1.0], [0.0, 9.0, 9.0]]),
}
OPTIONS = {"reference": "b", "threshold": 0.1}


def test_curves_are_parts_of_their_gain_and_the_reference_starts_where_it_does():
    ax = early_gains(STEPS, CURVES, **OPTIONS)
    assert has_line(ax, [[0, 0], [1, 0.5], [2, 1]])
    assert has_line(ax, [[0, 0], [1, 0.05], [2, 1]])
    assert has_line(ax, [[1, 0], [1, 1]])  # t*, over the whole height
    assert set(words(ax)) == {"a", "b", "t*"}


def test_without_a_finite_pair_there_is_nothing_to_draw():
    with pytest.raises(ValueError, match="early_gains: no pair"):
        early_gains(STEPS, {"a": CURVES["a"][2:], "b": CURVES["b"][2:]}, **OPTIONS)


def test_gains_are_drawn_on_the_axes_given():
    assert_drawn_on_the_axes_given(lambda ax: early_gains(STEPS, CURVES, ax=ax, **OPTIONS))
