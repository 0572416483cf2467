"""The figure of G4 draws what it is given."""

import numpy as np
from support.drawings import assert_drawn_on_the_axes_given, has_line

from halfway.lab.studies.g4.figures import agreement

MARGINS = (0.9, 1.1)


def test_agreement_draws_equality_its_band_and_every_pair():
    wrong, differ = np.array([0.1, 0.2, np.nan]), np.array([0.11, 0.19, np.nan])
    ax = agreement({"a": wrong, "b": wrong}, {"a": differ, "b": wrong}, margins=MARGINS)
    ends = ax.get_xlim()
    assert has_line(ax, [[end, end] for end in ends])
    band = ax.collections[0].get_paths()[0].vertices
    for margin in MARGINS:
        assert np.isclose(band, [ends[1], margin * ends[1]]).all(axis=1).any()
    (dots,) = (drawn for drawn in ax.collections if drawn.get_label() == "a")
    np.testing.assert_allclose(np.asarray(dots.get_offsets())[:2], [[0.1, 0.11], [0.2, 0.19]])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "b"]
    wedge = agreement({"a": wrong}, {"a": differ}, margins=MARGINS, interval=(1.2, 1.3))
    corners = wedge.collections[1].get_paths()[0].vertices
    for end in (1.2, 1.3):
        assert np.isclose(corners, [wedge.get_xlim()[1], end * wedge.get_xlim()[1]]).all(1).any()
    agreement({"a": [np.nan]}, {"a": [np.nan]}, margins=MARGINS).figure.canvas.draw()


def test_agreement_is_drawn_on_the_axes_given():
    values = np.linspace(0.1, 0.9, 6)
    assert_drawn_on_the_axes_given(
        lambda ax: agreement(
            {"a": values, "b": values}, {"a": values, "b": 2 * values}, margins=MARGINS, ax=ax
        )
    )
