"""The figure of T10 draws what it is given."""

import numpy as np
from support.drawings import assert_drawn_on_the_axes_given

from halfway.lab.studies.t10.figures import parts

ON = {"mlp": [0.8, 0.7], "cnn": [0.2, np.nan]}
OFF = {"mlp": [0.3, 0.4], "cnn": [0.5, 0.5]}


def test_parts_put_pairs_above_the_line_where_on_is_larger():
    ax = parts(ON, OFF, lead=0.1)
    points = [
        np.asarray(dots.get_offsets()) for dots in ax.collections if len(dots.get_offsets()) == 2
    ]
    np.testing.assert_allclose(points[0], [[0.3, 0.8], [0.4, 0.7]])
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["equal", "0.1 more", "mlp", "cnn"]
    low, high = ax.get_xlim()
    assert low < 0.2 and high > 0.8 and ax.get_ylim() == (low, high)
    assert "off" in ax.get_xlabel() and "M" in ax.get_ylabel()


def test_lines_are_equality_and_the_lead():
    ax = parts(ON, OFF, lead=0.1)
    equal, lead = (line.get_ydata() - line.get_xdata() for line in ax.get_lines())
    np.testing.assert_allclose(equal, 0.0, atol=1e-12)
    np.testing.assert_allclose(lead, 0.1)


def test_parts_are_drawn_on_the_axes_given():
    assert_drawn_on_the_axes_given(lambda ax: parts(ON, OFF, lead=0.1, ax=ax))
