"""Figures of rank correlations within strata: what is drawn, and where."""

import numpy as np
import pytest

from halfway import plots


def test_a_panel_for_each_stratum_holds_its_points():
    x, y = np.arange(6.0), np.array([0.1, 0.2, 0.3, 10.0, 20.0, 30.0])
    axes = plots.scatter_strata(
        x,
        y,
        [0, 0, 0, 1, 1, 1],
        ["few", "many"] * 3,
        titles=["ρ = 0: τ_K = 1", "ρ = 1"],
        xlabel="gap",
        ylabel="M_x",
        y_interval=np.array([y - 0.05, y + 0.1]),
    )
    assert len(axes) == 2
    for panel, rows in zip(axes, (slice(3), slice(3, None)), strict=True):
        seen = np.concatenate(
            [
                one.get_offsets()
                for one in panel.collections
                if len(one.get_offsets()) and one.get_label() in ("few", "many")
            ]
        )
        np.testing.assert_allclose(sorted(seen[:, 0]), x[rows])
        assert panel.get_ylim()[1] > y[rows].max() > panel.get_ylim()[0]
    # Scales of their own.
    assert axes[0].get_ylim()[1] < 1 < axes[1].get_ylim()[0]
    assert "mathrm" in axes[0].get_title(loc="left")
    assert [t.get_text() for t in axes[0].get_legend().get_texts()] == ["few", "many"]


def test_panels_need_titles_and_few_groups():
    with pytest.raises(ValueError, match="1 titles of 2 strata"):
        plots.scatter_strata([1, 2], [1, 2], [0, 1], ["a", "a"], titles=["x"], xlabel="", ylabel="")
    with pytest.raises(ValueError, match="4 lines; at most 3"):
        plots.scatter_strata(
            [1] * 4, [1] * 4, [0] * 4, list("abcd"), titles=["x"], xlabel="", ylabel=""
        )


def _rows(**kwargs):
    null = np.random.default_rng(0).normal(0, 0.1, (2, 500))
    return plots.partial_correlations(
        [0.5, np.nan],
        [0.3, -1.0],
        [0.7, 1.0],
        kwargs.pop("null", null),
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
