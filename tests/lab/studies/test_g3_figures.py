"""The figure of G3 draws what it is given."""

import numpy as np
import pytest
from support.drawings import assert_drawn_on_the_axes_given, has_line

from halfway import plots
from halfway.lab.studies.g3.figures import rank_contest

TAU = [0.2, -0.9, 0.5, np.nan]
LOW, HIGH = [0.1, -1, 0.4, np.nan], [0.3, -0.8, 0.6, np.nan]


def test_rank_contest_sorts_by_size_and_marks_what_is_on_trial():
    ax = rank_contest(TAU, LOW, HIGH, names=list("abcd"), granulated=[0, 0.1, 0.2, 0])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["d", "a", "c", "b"]
    colors = [label.get_color() for label in ax.get_yticklabels()]
    assert colors == [plots.INK, plots.BLUE, plots.INK, plots.INK]
    assert has_line(ax, [[0.1, 1], [0.3, 1]]) and has_line(ax, [[-1, 3], [-0.8, 3]])
    assert has_line(ax, [[0.1, 3]])  # granulated
    ax.figure.canvas.draw()
    with pytest.raises(ValueError, match="rank_contest"):
        rank_contest(TAU, LOW, HIGH, names=["a"])


def test_a_rank_contest_is_drawn_on_the_axes_given():
    assert_drawn_on_the_axes_given(
        lambda ax: rank_contest(TAU, LOW, HIGH, names=list("abcd"), ax=ax)
    )
