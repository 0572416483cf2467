"""Figures of T8 draw the numbers that they are given."""

import numpy as np
import pytest
from support.drawings import assert_drawn_on_the_axes_given, words

from halfway.lab.studies.t8.figures import numbers_of_directions, rates_by_number

# Four directions; one example a pair with one that fools A, one with two; one is not counted.
FOOLING = np.array([[1, 2, -1], [1, 2, -1]])
BOTH = np.array([[1, 1, 9], [0, 2, 9]])
OTHERS = np.array([[0, 2, 9], [3, 0, 9]])
COUNTS = np.array([[0, 1, 3, -1], [3, 3, 2, 1]])


def _heights(ax, index):
    return np.asarray(ax.lines[index].get_ydata())


def test_rates_by_number_are_shares_of_directions():
    ax = rates_by_number(FOOLING, BOTH, OTHERS, num_directions=4)
    np.testing.assert_allclose(_heights(ax, 0), [0.5, 0.75, np.nan])
    np.testing.assert_allclose(_heights(ax, 1), [0.5, 0.5, np.nan])
    assert {"fool A", "the others"} <= set(words(ax))
    # Without any example there are axes, without a number.
    empty = rates_by_number(-np.ones((2, 3)), BOTH, OTHERS, num_directions=4)
    assert np.isnan(_heights(empty, 0)).all()


def test_a_number_that_only_one_pair_has_is_left_out():
    fooling = FOOLING.copy()
    fooling[1, 0] = 3
    ax = rates_by_number(fooling, BOTH, OTHERS, num_directions=4)
    np.testing.assert_allclose(_heights(ax, 0), [np.nan, 0.75, np.nan])


def test_numbers_of_directions_fall_from_one_to_all():
    ax = numbers_of_directions({"fool A": COUNTS}, num_directions=3)
    first, second = [2 / 3, 1 / 3, 1 / 3], [1.0, 3 / 4, 2 / 4]
    np.testing.assert_allclose(_heights(ax, 0), np.mean([first, second], 0))
    assert ax.get_ylim()[1] >= 0.8
    with pytest.raises(ValueError, match="numbers_of_directions: 4 lines"):
        numbers_of_directions(dict.fromkeys("abcd", COUNTS), num_directions=3)


def test_both_are_drawn_on_the_axes_given():
    assert_drawn_on_the_axes_given(
        lambda ax: rates_by_number(FOOLING, BOTH, OTHERS, num_directions=4, ax=ax)
    )
    assert_drawn_on_the_axes_given(
        lambda ax: numbers_of_directions({"fool A": COUNTS}, num_directions=3, ax=ax)
    )
