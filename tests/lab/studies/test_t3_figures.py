"""The figure of T3: points in the panel of their stratum."""

import numpy as np
import pytest

from halfway.lab.studies.t3.figures import scatter_strata


def test_a_panel_for_each_stratum_holds_its_points():
    x, y = np.arange(6.0), np.array([0.1, 0.2, 0.3, 10.0, 20.0, 30.0])
    axes = scatter_strata(
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
        drawn = np.concatenate(
            [
                points.get_offsets()
                for points in panel.collections
                if len(points.get_offsets()) and points.get_label() in ("few", "many")
            ]
        )
        np.testing.assert_allclose(sorted(drawn[:, 0]), x[rows])
        assert panel.get_ylim()[1] > y[rows].max() > panel.get_ylim()[0]
    # Scales of their own.
    assert axes[0].get_ylim()[1] < 1 < axes[1].get_ylim()[0]
    assert "mathrm" in axes[0].get_title(loc="left")
    assert [t.get_text() for t in axes[0].get_legend().get_texts()] == ["few", "many"]


def test_panels_need_titles_and_few_groups():
    with pytest.raises(ValueError, match="1 titles of 2 strata"):
        scatter_strata([1, 2], [1, 2], [0, 1], ["a", "a"], titles=["x"], xlabel="", ylabel="")
    with pytest.raises(ValueError, match="4 lines; at most 3"):
        scatter_strata([1] * 4, [1] * 4, [0] * 4, list("abcd"), titles=["x"], xlabel="", ylabel="")
