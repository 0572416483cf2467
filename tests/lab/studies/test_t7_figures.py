"""The figures of T7 draw what they are given."""

import numpy as np
import pytest
from support.drawings import assert_drawn_on_the_axes_given

from halfway.lab.studies.t7 import figures


def test_curves_show_alignment_its_law_and_success():
    law = np.array([1.0, 2.0, 4.0]), np.array([0.6, 0.65, 0.7])
    alignment = [[0.61, 0.6, 0.62], [0.66, 0.65, 0.67], [0.7, -np.inf, np.inf]]
    success = [[0.2, 0.19, 0.21], [np.nan] * 3, [0.3, 0.28, 0.32]]
    left, right = figures.curves((1, 2, 4), alignment, success, law=law, limit=0.75, epsilon=0.1)
    assert [line.get_ydata()[0] for line in left.lines[:2]] == [0.75, 0.6]
    low, high = left.get_ylim()
    assert low < 0.6 and 0.75 < high < 1
    assert right.get_ylim()[0] == 0
    assert [tick.get_text() for tick in right.get_xticklabels()] == ["1", "2", "4"]


def test_ways_have_a_row_each():
    ax = figures.ways({"one": [0.2, 0.1, 0.3], "all": [0.4, 0.3, 0.5]}, reference=["one"])
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["one", "all"]
    assert ax.get_xlim()[1] == pytest.approx(0.54)
    assert_drawn_on_the_axes_given(lambda ax: figures.ways({"a": [0.3, 0.2, 0.4]}, ax=ax))
