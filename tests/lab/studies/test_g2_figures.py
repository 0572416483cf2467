"""The figure of G2 draws what it is given."""

import numpy as np
import pytest
from support.drawings import assert_inside, blue, has_line, words

from halfway import plots
from halfway.lab.studies.g2.figures import dose_response

RATES = np.array([0, 0.5, 1.0])


def test_dose_response_scales_by_the_ceiling():
    estimate = np.array([[0.9, 0.3, 0.0], [0.8, 0.2, 0.01]])
    accuracy = np.array([[1.0, 0.99, 0.98], [1.0, 1.0, 0.97]])
    axes = dose_response(
        RATES,
        estimate,
        estimate - 0.1,
        estimate + 0.1,
        names=["MLP", "CNN"],
        ceiling=1 - RATES,
        training_accuracy=accuracy,
        gate=0.9,
    )
    assert len(axes) == 3
    for ax, scale in zip(axes, (1, 2), strict=False):
        curve = blue(ax)
        np.testing.assert_allclose(curve[:2], [0.9, 0.3 * scale])
    share = blue(axes[1])
    assert np.isnan(share[2])  # no share of a ceiling of 0
    assert has_line(axes[0], np.stack([RATES, 1 - RATES], 1))
    assert has_line(axes[2], np.stack([RATES, accuracy[1]], 1))
    assert has_line(axes[2], [[0, 0.9], [1, 0.9]]) and words(axes[2]) == ["gate .9"]
    assert {"MLP", "CNN", "ceiling"} == set(words(axes[1]))
    np.testing.assert_array_equal(axes[1].lines[0].get_ydata(), [1, 1, np.nan])  # the ceiling
    band = axes[0].collections[0].get_paths()[0].vertices
    assert {0.8, 1.0, 0.2, 0.4} <= set(np.round(band[:, 1], 9))


def test_dose_response_without_training_or_a_ceiling_of_its_own():
    estimate = np.array([[0.9, 0.3, 0.0], [0.8, 0.2, 0.01]])
    axes = dose_response(RATES, estimate, estimate, estimate, names=["a", "b"])
    assert len(axes) == 2 and has_line(axes[0], np.stack([RATES, 1 - RATES], 1))
    with pytest.raises(ValueError, match="4 lines"):
        dose_response(RATES, np.zeros((4, 3)), estimate, estimate, names=list("abcd"))


def test_dose_response_shows_early_stops_above_what_must_be_won_back():
    estimate = np.array([[0.9, 0.3, 0.0]])
    early = np.stack([[[0.95, 0.4, 0.0]]] * 3, -1)
    axes = dose_response(
        RATES, estimate, estimate, estimate, names=["a"], early=early, regained=0.5
    )
    drawn = {
        line.get_color(): [round(float(y), 9) for y in line.get_ydata()[:2]]
        for line in axes[1].lines
        if line.get_linestyle() in ("--", ":") and len(line.get_ydata()) == 3
    }
    # Halfway from the share at the end back to that without noise.
    assert drawn[plots.GREY] == [0.9, 0.75] and drawn[plots.BLUE] == [0.95, 0.8]
    assert [text.get_text() for text in axes[1].get_legend().get_texts()][-1] == "threshold"
    assert_inside(axes[0].figure)


def test_words_stay_inside_the_figure():
    values = np.linspace(0, 1, 6)
    axes = dose_response(
        values,
        *[values[None]] * 3,
        names=["MLP"],
        ceiling=1 - values,
        training_accuracy=values[None],
    )
    assert_inside(axes[0].figure)
