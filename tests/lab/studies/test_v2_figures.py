"""The figure of V2 draws what it is given."""

import numpy as np
from support.drawings import assert_drawn_on_the_axes_given, words

from halfway.lab.studies.v2.figures import alignment


def test_alignment_has_its_law_with_a_margin_and_a_limit():
    law = np.array([1.0, 2.0, 4.0]), np.array([0.6, 0.65, 0.7])
    values = [[0.61, 0.6, 0.62], [0.66, 0.65, 0.67], [0.7, -np.inf, np.inf]]
    options = {"law": law, "limit": 0.75, "margin": 0.03}
    ax = alignment((1, 2, 4), values, **options)
    assert [line.get_ydata()[0] for line in ax.lines[:2]] == [0.75, 0.6]
    low, high = ax.get_ylim()
    assert low < 0.57 and 0.75 < high < 1
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["1", "2", "4"]
    assert {"law", "limit"} <= set(words(ax))
    assert_drawn_on_the_axes_given(lambda ax: alignment((1, 2, 4), values, **options, ax=ax))
