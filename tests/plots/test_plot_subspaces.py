"""Figures about subspaces draw the numbers that they are given."""

import numpy as np
import pytest

from halfway import plots


def _line(ax, index):
    return np.asarray(ax.lines[index].get_ydata())


def test_rates_by_number_are_shares_of_directions():
    # Four directions; one example a pair with one that fools A, one with two; one is not counted.
    fooling = np.array([[1, 2, -1], [1, 2, -1]])
    both = np.array([[1, 1, 9], [0, 2, 9]])
    others = np.array([[0, 2, 9], [3, 0, 9]])
    ax = plots.rates_by_number(fooling, both, others, num_directions=4)
    np.testing.assert_allclose(_line(ax, 0), [0.5, 0.75, np.nan])
    np.testing.assert_allclose(_line(ax, 1), [0.5, 0.5, np.nan])
    texts = [text.get_text() for text in ax.texts]
    assert {"fool A", "the others"} <= set(texts)
    # Without any example there are axes, without a number.
    empty = plots.rates_by_number(-np.ones((2, 3)), both, others, num_directions=4)
    assert np.isnan(_line(empty, 0)).all()


def test_numbers_of_directions_fall_from_one_to_all():
    counts = np.array([[0, 1, 3, -1], [3, 3, 2, 1]])
    ax = plots.numbers_of_directions({"fool A": counts}, num_directions=3)
    first, second = [2 / 3, 1 / 3, 1 / 3], [1.0, 3 / 4, 2 / 4]
    np.testing.assert_allclose(_line(ax, 0), np.mean([first, second], 0))
    assert ax.get_ylim()[1] >= 0.8
    with pytest.raises(ValueError, match="numbers_of_directions: 4 lines"):
        plots.numbers_of_directions(dict.fromkeys("abcd", counts), num_directions=3)


def test_parts_put_pairs_above_the_line_where_on_is_larger():
    on, off = {"mlp": [0.8, 0.7], "cnn": [0.2, np.nan]}, {"mlp": [0.3, 0.4], "cnn": [0.5, 0.5]}
    ax = plots.parts(on, off, margin=0.05)
    points = [
        np.asarray(dots.get_offsets()) for dots in ax.collections if len(dots.get_offsets()) == 2
    ]
    np.testing.assert_allclose(points[0], [[0.3, 0.8], [0.4, 0.7]])
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["mlp", "cnn"]
    low, high = ax.get_xlim()
    assert low < 0.2 and high > 0.8 and ax.get_ylim() == (low, high)
    assert "off" in ax.get_xlabel() and "M" in ax.get_ylabel()
