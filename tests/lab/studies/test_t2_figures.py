"""The figure of T2 draws what it is given."""

import numpy as np
import pytest
from scipy import stats
from support.drawings import assert_drawn_on_the_axes_given, assert_inside, has_line, words

from halfway.lab.studies.t2 import figures


def test_rates_by_hand():
    score = np.arange(8.0)
    fooled = np.array([0, 0, 0, 1, 0, 1, 1, 1])
    pair = np.array([0, 1, 0, 1, 0, 1, 0, 1])
    ax = figures.rates(score, fooled, pair, num_bins=2)
    # Lower half: pair 0 has 0, 0, pair 1 has 0, 1; upper: pair 0 has 0, 1, pair 1 has 1, 1.
    assert has_line(ax, [[1.5, 0.25], [5.5, 0.75]])
    assert has_line(ax, [[0, 0.5], [1, 0.5]])  # the rate over all
    # The t interval of two pairs reaches beyond 1, where no rate is.
    band = ax.collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == (0, 1)
    assert words(ax) == ["all examples"]


def test_the_band_of_rates_is_the_t_interval_over_pairs():
    pair = np.repeat(np.arange(8), 4)
    fooled = np.tile([1, 0, 0, 0, 1, 1, 0, 0], 4)  # means over a pair: 1/4 and 1/2 in turn
    band = figures.rates(np.zeros(32), fooled, pair).collections[0].get_paths()[0].vertices
    expected = stats.ttest_1samp(np.tile([0.25, 0.5], 4), 0).confidence_interval(0.95)
    assert np.isclose(band[:, 1].min(), expected.low)
    assert np.isclose(band[:, 1].max(), expected.high)


def test_bins_keep_equal_scores_together():
    ax = figures.rates(np.zeros(6), np.ones(6), np.arange(6) % 2, num_bins=3)
    assert has_line(ax, [[0, 1]])
    with pytest.raises(ValueError, match="three equal"):
        figures.rates(np.zeros(3), np.zeros(2), np.zeros(3))


LONG = "a quantity in many words, its symbol M_θ and its unit, that goes on and on"
VALUES, PAIR = np.linspace(0.1, 0.9, 6), np.arange(6) % 2


def draw_rates(**options):
    return figures.rates(VALUES, VALUES > 0.5, PAIR, num_bins=2, **options)


def test_words_stay_inside_and_axes_are_those_given():
    assert_inside(draw_rates().figure)
    assert_inside(draw_rates(xlabel=LONG, ylabel=LONG).figure)
    assert_drawn_on_the_axes_given(lambda ax: draw_rates(ax=ax))
