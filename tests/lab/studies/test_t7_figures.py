"""The figures of T7 draw what they are given."""

import numpy as np
import pytest
from support.drawings import assert_drawn_on_the_axes_given, words

from halfway.lab.studies.t7 import figures

GAINS = {
    "numbers": (1, 2, 4),
    "alignment": [0.6, 0.65, 0.7],
    "success": [[0.2, 0.19, 0.21], [0.25, -np.inf, np.inf], [0.3, 0.28, 0.32]],
    "line": ([0.6, 0.71], [0.2, 0.31]),
    "predicted": (0.71, (0.31, 0.29, 0.33)),
    "margin": 0.03,
    "epsilon": 0.1,
}


def test_gains_show_success_over_alignment_and_what_is_predicted():
    ax = figures.gains(**GAINS)
    (line,) = (
        line for line in ax.lines if len(line.get_xdata()) == 2 and line.get_color() == figures.GREY
    )
    assert line.get_ydata().tolist() == [0.2, 0.31]
    (band,) = ax.patches
    low, high = band.get_extents().transformed(ax.transData.inverted()).intervaly
    assert (low, high) == pytest.approx((0.27, 0.33))
    assert {"k = 1", "k = 2", "k = 4", "predicted"} <= set(words(ax))
    assert_drawn_on_the_axes_given(lambda ax: figures.gains(**GAINS, ax=ax))


def test_ways_have_a_row_each():
    ax = figures.ways({"one": [0.2, 0.1, 0.3], "all": [0.4, 0.3, 0.5]}, reference=["one"])
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["one", "all"]
    assert ax.get_xlim()[1] == pytest.approx(0.54)
    assert_drawn_on_the_axes_given(lambda ax: figures.ways({"a": [0.3, 0.2, 0.4]}, ax=ax))
