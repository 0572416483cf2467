"""The figure of T12: a row for each predictor, and what chance gives."""

import numpy as np
import pytest
from support.drawings import assert_drawn_on_the_axes_given

from halfway.lab.studies.t12.figures import partial_correlations

NULL = np.random.default_rng(0).normal(0, 0.1, (2, 500))


def _rows(null=NULL, **kwargs):
    return partial_correlations(
        [0.5, np.nan],
        [0.3, -1.0],
        [0.7, 1.0],
        null,
        names=["size", "alignment"],
        expected=[1, -1],
        **kwargs,
    )


def test_partial_correlations_have_a_row_each_the_first_on_top():
    ax = _rows(alone=[0.6, 0.1])
    assert [t.get_text() for t in ax.get_yticklabels()] == ["alignment", "size"]
    points = [tuple(np.ravel(line.get_data())) for line in ax.lines if len(line.get_xdata()) == 1]
    assert (0.5, 1) in points and (0.6, 1) in points and (0.1, 0) in points
    # An undefined estimate is not drawn, nor its interval.
    assert not any(np.isnan(point).any() for point in points)
    ends = [tuple(line.get_xdata()) for line in ax.lines if len(line.get_xdata()) == 2]
    assert (0.3, 0.7) in ends and (-1.0, 1.0) not in ends


def test_nulls_that_are_undefined_leave_their_row_empty():
    ax = _rows(null=np.full((2, 5), np.nan))
    assert not ax.collections
    with pytest.raises(ValueError, match="2 estimates, 1 nulls"):
        _rows(null=np.zeros((1, 5)))


def test_partial_correlations_are_drawn_on_the_axes_given():
    assert_drawn_on_the_axes_given(lambda ax: _rows(ax=ax))
