"""Figures draw what they are given, and leave matplotlib as it was."""

import inspect
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from scipy import stats

from halfway import plots

RATES = np.array([0, 0.5, 1.0])
ROW = plots.ForestRow("G1", "M_θ minus control", 0.9, 0.8, 1.0, (0.0,), verdict="supported")


def lines(ax):
    """Every line of an axes as a list of its points."""
    return [np.transpose(np.broadcast_arrays(*line.get_data())) for line in ax.lines]


def has_line(ax, points):
    points = np.asarray(points, float)
    return any(line.shape == points.shape and np.allclose(line, points) for line in lines(ax))


def blue(ax):
    return next(line.get_ydata() for line in ax.lines if line.get_color() == plots.BLUE)


def words(ax):
    return [text.get_text() for text in ax.texts]


@pytest.fixture(autouse=True)
def untouched():
    before = dict(matplotlib.rcParams)
    yield
    assert dict(matplotlib.rcParams) == before


def test_pyplot_is_never_imported():
    code = (
        "import sys, halfway.plots as p; p.new_figure().subplots(); "
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_symbols_there_and_back():
    assert plots.symbols("M_θ, num_pairs") == r"$M_{\mathrm{θ}}$, num_pairs"
    figure = plots.new_figure()
    label = figure.text(0, 0, plots.symbols("M_θ/(1 − ρ) of n_half"))
    drawn = label.get_text()
    with plots.plain_symbols(figure):
        assert label.get_text() == "M_θ/(1 − ρ) of n_half"
    assert label.get_text() == drawn


def test_mean_interval_is_the_t_interval():
    values = np.array([1.0, 2.0, 4.0, np.nan])
    mean, low, high = plots.mean_interval(values)
    expected = stats.ttest_1samp(values[:3], 0).confidence_interval(0.95)
    np.testing.assert_allclose((mean, low, high), (7 / 3, expected.low, expected.high))
    assert plots.mean_interval([3.0])[0] == 3.0
    assert np.isnan(plots.mean_interval([3.0])[1:]).all()
    assert np.isnan(plots.mean_interval([np.nan])).all()


def test_forest_draws_effect_interval_threshold_and_control():
    row = ROW._replace(control=(0.1, 0.05, 0.15), control_label="permuted", value="0.90")
    (ax,) = plots.forest([row])
    assert isinstance(ax, Axes)
    assert has_line(ax, [[0.8, 0.66], [1.0, 0.66]]) and has_line(ax, [[0.9, 0.66]])
    assert has_line(ax, [[0.05, 0.22], [0.15, 0.22]]) and has_line(ax, [[0.1, 0.22]])
    assert has_line(ax, [[0, 0], [0, 1]])
    assert {"supported", "0.90", "permuted"} <= set(words(ax))
    assert ax.get_title(loc="left") == r"G1: $M_{\mathrm{θ}}$ minus control"
    grey = [line for line in ax.lines if line.get_color() == plots.GREY]
    assert len(grey) == 2


def test_forest_gives_unbounded_ends_an_arrow():
    rows = [ROW, ROW._replace(low=-np.inf), ROW._replace(low=-np.inf, high=np.inf, estimate=np.nan)]
    arrows = [
        sorted(line.get_marker() for line in ax.lines if line.get_marker() in ("<", ">"))
        for ax in plots.forest(rows)
    ]
    assert arrows == [[], ["<"], ["<", ">"]]
    axes = plots.forest(rows)
    left, right = axes[2].get_xlim()
    assert np.isfinite([left, right]).all() and left < right
    assert has_line(axes[2], [[left, 0.5], [right, 0.5]])


@pytest.mark.parametrize(
    ("direction", "threshold", "inside", "outside"),
    [("greater", (0.5,), 0.6, 0.4), ("less", (0.5,), 0.4, 0.6), ("within", (0.2, 0.8), 0.5, 0.9)],
)
def test_forest_shades_the_side_of_the_claim(direction, threshold, inside, outside):
    (ax,) = plots.forest([ROW._replace(direction=direction, threshold=threshold, low=0.1)])
    (shade,) = ax.patches
    assert shade.get_x() < inside < shade.get_x() + shade.get_width()
    assert not shade.get_x() < outside < shade.get_x() + shade.get_width()


def test_forest_on_given_axes_and_without_rows():
    axes = plots.new_figure().subplots(2, 1)
    assert list(plots.forest([ROW, ROW], ax=axes)) == list(axes)
    with pytest.raises(ValueError, match="at least one"):
        plots.forest([])


def test_pair_comparison_shows_every_pair_and_the_control_in_grey():
    rng = np.random.default_rng(0)
    values, controls = rng.normal(1, 0.1, (2, 5)), rng.normal(0, 0.1, (2, 3, 5))
    ax = plots.pair_comparison(
        values,
        controls,
        names=["MLP", "CNN"],
        treatment="attack",
        control_names=["a", "b", "c"],
        xlabel="M_x, transfer",
    )
    dots = [item.get_offsets()[:, 0] for item in ax.collections]
    np.testing.assert_allclose(dots[0], values[0])
    np.testing.assert_allclose(dots[1:4], controls[0])
    np.testing.assert_allclose(dots[4], values[1])
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels == ["MLP: attack", "a", "b", "c", "CNN: attack", "a", "b", "c"]
    colors = [matplotlib.colors.to_hex(item.get_facecolor()[0]) for item in ax.collections]
    assert colors == [plots.BLUE, *[plots.GREY] * 3] * 2
    mean, low, high = plots.mean_interval(values[0])
    assert has_line(ax, [[mean, -0.24]]) and has_line(ax, [[low, -0.24], [high, -0.24]])
    assert has_line(ax, [[0, 0], [0, 1]])
    joined = [line for line in lines(ax) if line.shape == (4, 2)]
    assert len(joined) == 10
    np.testing.assert_allclose(joined[0][:, 0], [values[0, 0], *controls[0, :, 0]])


def test_pair_comparison_of_one_architecture_and_of_wrong_shapes():
    values, controls = np.array([1.0, 1.1, 1.2]), np.zeros((2, 3))
    options = {"names": ["MLP"], "treatment": "x", "control_names": ["y", "z"], "xlabel": "M"}
    ax = plots.pair_comparison(values, controls, **options)
    dots = [item.get_offsets()[:, 0] for item in ax.collections]
    np.testing.assert_allclose(dots, [values, *controls])
    for wrong in (controls[:1], controls[:, :2], np.zeros((2, 2, 3))):
        with pytest.raises(ValueError, match=r"\[A, P\] and \[A, K, P\]"):
            plots.pair_comparison(values, wrong, **options)


def test_pair_comparison_takes_intervals_and_undefined_pairs():
    values = np.array([[1.0, np.nan, 1.2]])
    given = np.array([[[1.1, 0.9, 1.3], [0.0, -np.inf, 0.1]]])
    ax = plots.pair_comparison(
        values,
        np.zeros((1, 1, 3)),
        names=["MLP"],
        treatment="x",
        control_names=["y"],
        xlabel="M",
        intervals=given,
        threshold=None,
    )
    assert has_line(ax, [[0.9, -0.24], [1.3, -0.24]]) and has_line(ax, [[1.1, -0.24]])
    assert sum(line.get_marker() == "<" for line in ax.lines) == 1
    ax.figure.canvas.draw()


def test_dose_response_scales_by_the_ceiling():
    estimate = np.array([[0.9, 0.3, 0.0], [0.8, 0.2, 0.01]])
    accuracy = np.array([[1.0, 0.99, 0.98], [1.0, 1.0, 0.97]])
    axes = plots.dose_response(
        RATES,
        estimate,
        estimate - 0.1,
        estimate + 0.1,
        names=["MLP", "CNN"],
        ceiling=1 - RATES,
        training_accuracy=accuracy,
    )
    assert len(axes) == 3
    for ax, scale in zip(axes, (1, 2), strict=False):
        curve = blue(ax)
        np.testing.assert_allclose(curve[:2], [0.9, 0.3 * scale])
    share = blue(axes[1])
    assert np.isnan(share[2])  # no share of a ceiling of 0
    assert has_line(axes[0], np.stack([RATES, 1 - RATES], 1))
    assert has_line(axes[2], np.stack([RATES, accuracy[1]], 1))
    assert {"MLP", "CNN", "ceiling"} == set(words(axes[1]))
    np.testing.assert_array_equal(axes[1].lines[0].get_ydata(), [1, 1, np.nan])  # the ceiling
    band = axes[0].collections[0].get_paths()[0].vertices
    assert {0.8, 1.0, 0.2, 0.4} <= set(np.round(band[:, 1], 9))
    plain = plots.dose_response(RATES, estimate, estimate, estimate, names=["a", "b"])
    assert len(plain) == 2 and has_line(plain[0], np.stack([RATES, 1 - RATES], 1))
    with pytest.raises(ValueError, match="4 lines"):
        plots.dose_response(RATES, np.zeros((4, 3)), estimate, estimate, names=list("abcd"))


def test_binned_rates_by_hand():
    score = np.arange(8.0)
    fooled = np.array([0, 0, 0, 1, 0, 1, 1, 1])
    pair = np.array([0, 1, 0, 1, 0, 1, 0, 1])
    ax = plots.binned_rates(score, fooled, pair, num_bins=2, label="MLP")
    # lower half: pair 0 has 0, 0, pair 1 has 0, 1; upper: pair 0 has 0, 1, pair 1 has 1, 1
    assert has_line(ax, [[1.5, 0.25], [5.5, 0.75]])
    assert has_line(ax, [[0, 0.5], [1, 0.5]])  # the rate over all
    band = ax.collections[0].get_paths()[0].vertices
    expected = stats.ttest_1samp([0.5, 1.0], 0).confidence_interval(0.95)
    assert np.isclose(band[:, 1], expected.high).any()
    assert {"MLP", "MLP: all"} == set(words(ax))


def test_bins_keep_equal_scores_together():
    ax = plots.binned_rates(np.zeros(6), np.ones(6), np.arange(6) % 2, num_bins=3)
    assert has_line(ax, [[0, 1]])
    with pytest.raises(ValueError, match="three equal"):
        plots.binned_rates(np.zeros(3), np.zeros(2), np.zeros(3))


def test_calibration_draws_identity_margin_and_slope():
    predicted = np.linspace(0, 1, 20)
    ax = plots.calibration(
        predicted,
        1.1 * predicted,
        np.arange(20) % 4,
        slope=(1.1, 1.0, 1.2),
        num_bins=2,
        label="MLP",
        ylabel="measured",
    )
    assert ax.get_ylabel() == "measured"
    middle = np.array([predicted[:10].mean(), predicted[10:].mean()])
    assert has_line(ax, np.stack([middle, 1.1 * middle], 1))
    reach = 1.08 * middle[1]
    assert has_line(ax, [[0, 0], [reach, reach]]) and has_line(ax, [[0, 0], [reach, 1.1 * reach]])
    band = ax.collections[0].get_paths()[0].vertices
    for slope in (0.8, 1.25):
        assert np.isclose(band, [reach, slope * reach]).all(axis=1).any()
    assert "MLP: 1.10" in words(ax)
    plots.calibration(predicted, predicted, np.arange(20) % 4, index=1, num_bins=2, ax=ax)
    assert sum(text == "equal" for text in words(ax)) == 1


def test_scatter_has_a_marker_for_each_architecture_and_a_colour_for_each_rate():
    gap, transfer = np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.4, 0.3, 0.2, 0.1])
    ax = plots.scatter_transfer_gap(
        gap,
        transfer,
        [0, 1, 0, 1],
        names=["MLP", "MLP", "CNN", "CNN"],
        gap_interval=[gap - 0.01, gap + 0.02],
        transfer_interval=[transfer - 0.01, transfer],
    )
    points = [item for item in ax.collections if hasattr(item, "get_offsets")]
    drawn = np.concatenate(
        [np.asarray(item.get_offsets()) for item in points if len(item.get_offsets()) == 2]
    )
    np.testing.assert_allclose(drawn, np.stack([gap, transfer], 1))
    mlp, cnn = (item.get_facecolor() for item in points if len(item.get_facecolor()) == 2)
    np.testing.assert_allclose(mlp, cnn)
    assert not np.allclose(mlp[0], mlp[1])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["MLP", "CNN"]
    bar = ax.figure.axes[1]
    assert [text.get_text() for text in bar.get_yticklabels()] == ["0", "1"]
    segments = [
        np.array(s) for c in ax.collections if hasattr(c, "get_segments") for s in c.get_segments()
    ]
    assert any(np.allclose(s, [[0.09, 0.4], [0.12, 0.4]]) for s in segments)


def test_budget_curve_draws_lines_bands_and_labels_apart():
    budgets = np.array([0.05, 0.1, 0.2])
    rates = {"target": [0.1, 0.2, 0.3], "other": [0.1, 0.2, 0.301], "noise": [0.0, 0.01, 0.02]}
    ax = plots.budget_curve(
        budgets,
        rates,
        low={"target": [0.0, 0.1, -np.inf]},
        high={"target": [0.2, 0.3, np.inf]},
        controls=("noise",),
        decides=0.1,
    )
    for values in rates.values():
        assert has_line(ax, np.stack([budgets, values], 1))
    grey = [line for line in ax.lines if line.get_color() == plots.GREY]
    assert len(grey) == 1 and grey[0].get_label() == "noise"
    assert ax.get_ylim()[1] < 1  # an unbounded interval does not blow up the axis
    assert set(words(ax)) == set(rates)
    heights = sorted(text.xy[1] for text in ax.texts)
    assert min(np.diff(heights)) >= 0.08 - 1e-9
    with pytest.raises(ValueError, match="4 lines"):
        plots.budget_curve(budgets, {name: budgets for name in "abcd"})


def test_walks_draws_both_landscapes_and_their_descents():
    own = np.array([[0.9, 0.5, 0.1, 0.0], [0.7, 0.5, 0.3, 0.2]])
    other = own + np.array([0.0, 0.1, 0.2, 0.3])
    ax = plots.walks([0, 10, 30], own, other, ylabel="error")
    lower, upper = own.mean(0), other.mean(0)
    assert has_line(ax, np.stack([[0, 10, 30], lower[1:]], 1))
    assert has_line(ax, np.stack([[0, 10, 30], upper[1:]], 1))
    assert has_line(ax, [[0, 0.8], [1, 0.8]])  # the start: the same for both
    arrows = [(text.xyann[1], text.xy[1]) for text in ax.texts if text.arrow_patch]
    np.testing.assert_allclose(arrows, [(0.8, lower[-1]), (0.8, upper[-1])])
    assert {"own half", "other half", "best constant\npredictor"} <= set(words(ax))
    band = ax.collections[0].get_paths()[0].vertices
    expected = stats.ttest_1samp(own[:, -1], 0).confidence_interval(0.95)
    assert np.isclose(band, [30, expected.high]).all(axis=1).any()


def test_walks_that_begin_where_progress_is_counted_from():
    rise = -np.array([[0.0, 1.0, 2.0], [0.0, 1.5, np.nan]])
    ax = plots.walks([0, 1, 2], rise, rise / 2, names=("surrogate", "target"), start="clean")
    assert has_line(ax, np.stack([[0, 1, 2], [0, -1, -2]], 1))  # the pair that diverged leaves
    assert {"surrogate", "target", "clean"} <= set(words(ax))
    for steps, own in (([0, 1, 2, 3, 4], rise), ([0, 1, 2], rise[0])):
        with pytest.raises(ValueError, match=r"they are \[P, T\]"):
            plots.walks(steps, own, own)
    with pytest.raises(ValueError, match="no pair"):
        plots.walks([0, 1, 2], rise[1:], rise[1:])


def test_long_words_stay_inside_the_figure():
    long = "a quantity in many words, its symbol M_θ and its unit, that goes on and on"
    name = "matched noise on a random set of pixels"
    values = np.linspace(0, 1, 6)
    drawn = [
        plots.forest(
            [
                ROW._replace(
                    label=f"{long}, {name}",
                    value="−0.130 [−0.160, −0.100]",
                    note="fails: mlp, 0.8 to 1…",
                )
            ]
            * 2
        )[0],
        plots.pair_comparison(
            values[None],
            values[None, None],
            names=["transformer"],
            treatment=name,
            control_names=[name],
            xlabel=long,
        ),
        plots.binned_rates(
            values,
            values > 0.5,
            np.arange(6) % 2,
            label="CNN",
            num_bins=2,
            xlabel=long,
            ylabel=long,
        ),
        plots.binned_rates(values, values > 0.5, np.arange(6) % 2, num_bins=2),
        plots.calibration(values, values, np.arange(6) % 2, slope=(1.1, 1, 1.2), label="CNN"),
        plots.scatter_transfer_gap(values, values, values, names=["CNN"] * 6, xlabel=long),
        plots.budget_curve(values, {name: values}, xlabel=long, ylabel=long),
        plots.dose_response(
            values,
            values[None],
            values[None],
            values[None],
            names=["MLP"],
            ceiling=1 - values,
            training_accuracy=values[None],
        )[0],
        plots.walks(
            values,
            values[None],
            values[None],
            names=(name, name),
            start=name,
            xlabel=long,
            ylabel=long,
        ),
        plots.transfer_matrix(values[None], surrogates=[name], label=long),
        plots.transfer_matrix(values[:, None], label="M_x, transfer in margin loss"),
        plots.images(np.zeros((1, 8, 8, 1)), np.ones((1, 8, 8, 1)), titles=["7"]),
    ]
    for ax in drawn:
        figure = ax.figure
        renderer = FigureCanvasAgg(figure).get_renderer()
        figure.draw(renderer)
        box, (width, height) = figure.get_tightbbox(renderer), figure.get_size_inches()
        assert min(box.x0, box.y0) >= -0.02, ax.get_xlabel()
        assert box.x1 <= width + 0.02 and box.y1 <= height + 0.02, ax.get_xlabel()


def test_agreement_draws_equality_its_band_and_every_pair():
    wrong, differ = np.array([0.1, 0.2, np.nan]), np.array([0.11, 0.19, np.nan])
    ax = plots.agreement({"a": wrong, "b": wrong}, {"a": differ, "b": wrong}, margins=(0.9, 1.1))
    ends = ax.get_xlim()
    assert has_line(ax, [[end, end] for end in ends])
    first = next(one for one in ax.collections if one.get_label() == "a")
    np.testing.assert_allclose(np.asarray(first.get_offsets())[:2], [[0.1, 0.11], [0.2, 0.19]])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "b"]
    plots.agreement({"a": [np.nan]}, {"a": [np.nan]}, margins=(0.9, 1.1)).figure.canvas.draw()


def test_memorization_draws_a_line_a_rate_and_fresh_data_in_each_axes():
    lines = [np.array([0.0, 0.5]), np.array([0.1, 0.3])]
    low = [line - 0.1 for line in lines]
    high = [np.array([0.1, np.inf]), lines[1] + 0.1]
    sizes = {10: lines, 20: lines[::-1]}
    axes = plots.memorization(
        [1, 8],
        sizes,
        {n: low for n in sizes},
        {n: high for n in sizes},
        rates=[0, 0.4],
        fresh=(0.01, -0.02, 0.04),
    )
    assert [ax.get_title() for ax in axes] == ["n = 10", "n = 20"]
    for ax, first in zip(axes, (lines[0], lines[1]), strict=True):
        np.testing.assert_allclose(blue(ax), first)
        assert has_line(ax, [[1, 0.01], [8, 0.01]])
        assert {"ρ = 0", "ρ = 0.4", "fresh data"} <= set(words(ax))
    axes[0].figure.canvas.draw()


def test_rank_contest_sorts_by_size_and_marks_what_is_on_trial():
    tau, low, high = [0.2, -0.9, 0.5, np.nan], [0.1, -1, 0.4, np.nan], [0.3, -0.8, 0.6, np.nan]
    ax = plots.rank_contest(tau, low, high, names=["a", "b", "c", "d"], granulated=[0, 0.1, 0.2, 0])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["d", "a", "c", "b"]
    colors = [label.get_color() for label in ax.get_yticklabels()]
    assert colors == [plots.INK, plots.BLUE, plots.INK, plots.INK]
    assert has_line(ax, [[0.1, 1], [0.3, 1]]) and has_line(ax, [[-1, 3], [-0.8, 3]])
    assert has_line(ax, [[0.1, 3]])  # granulated
    ax.figure.canvas.draw()
    with pytest.raises(ValueError, match="rank_contest"):
        plots.rank_contest(tau, low, high, names=["a"])


def test_lines_of_memorization_are_named_at_their_ends_on_a_shared_scale():
    low = {1: [np.array([0.0, 0.5])], 2: [np.array([0.0, 5.0])]}
    axes = plots.memorization([1, 8], low, low, low, rates=[0])
    axes[0].figure.canvas.draw()
    for ax, end in zip(axes, (0.5, 5.0), strict=True):
        least, most = ax.get_ylim()
        (name,) = ax.texts
        assert name.xy[1] == pytest.approx((end - least) / (most - least), abs=0.01)


def test_gap_path_draws_the_measured_gap_and_the_sum_of_its_steps():
    gap = np.array([[0.0, 1.0, 3.0], [0.0, 2.0, 3.0], [np.nan] * 3])
    axes = plots.gap_path({"a": ([0, 5, 10], gap, gap + 1), "b": ([0, 1, 2], gap, gap)})
    assert [ax.get_title() for ax in axes] == ["a", "b"]
    assert has_line(axes[0], [[0, 0], [5, 1.5], [10, 3]])
    assert has_line(axes[0], [[0, 1], [5, 2.5], [10, 4]])
    assert {"measured", "summed"} <= set(words(axes[0]))
    axes[0].figure.canvas.draw()


def test_a_law_is_a_line_with_points_and_marks_one_half():
    measured = {"MLP": [[0.3, 0.2, 0.4], [0.7, 0.6, np.inf]]}
    line = {"MLP": ([1, 10, 100], [0.1, 0.5, 0.9])}
    ax = plots.law([2, 50], measured, line, half={"MLP": 10.0}, xlabel="n", ylabel="μ_θ")
    assert has_line(ax, [[1, 0.1], [10, 0.5], [100, 0.9]])
    assert has_line(ax, [[2, 0.3], [50, 0.7]])
    assert has_line(ax, [[10, 0.5]])
    assert ax.get_xscale() == "log"
    ax.figure.canvas.draw()


def test_transfer_against_risk_shows_both_branches_and_where_n_over_d_is():
    curves = {"n > d + 1": ([0.1, 1], [0.9, 0.5]), "n < d − 1": ([1, 2], [0.3, 0.2])}
    ax = plots.transfer_against_risk(
        [0.1, 5], [[0.5, 0.4, 0.6], [0.1, 0.09, 0.11]], [[0.2, 0.1, 0.3], [0.9, 0.8, 1.0]], curves
    )
    for x, y in curves.values():
        assert has_line(ax, np.transpose([x, y]))
    assert {"0.1", "5"} <= set(words(ax))
    ax.figure.canvas.draw()


def _has_axes(fn):
    parameter = inspect.signature(fn).parameters.get("ax")
    return parameter is not None and parameter.kind is parameter.KEYWORD_ONLY


def test_every_figure_is_drawn_on_the_axes_given():
    values, pair = np.linspace(0.1, 0.9, 6), np.arange(6) % 2
    draws = {
        "pair_comparison": lambda ax: plots.pair_comparison(
            values, values[None], names=["a"], treatment="b", control_names=["c"], xlabel="d", ax=ax
        ),
        "agreement": lambda ax: plots.agreement(
            {"a": values, "b": values}, {"a": values, "b": 2 * values}, margins=(0.9, 1.1), ax=ax
        ),
        "rank_contest": lambda ax: plots.rank_contest(
            values, values - 0.1, values + 0.1, names=list("abcdef"), ax=ax
        ),
        "binned_rates": lambda ax: plots.binned_rates(values, values > 0.5, pair, ax=ax),
        "calibration": lambda ax: plots.calibration(values, values, pair, ax=ax),
        "scatter_transfer_gap": lambda ax: plots.scatter_transfer_gap(
            values, values, values, names=["a"] * 6, ax=ax
        ),
        "budget_curve": lambda ax: plots.budget_curve(values, {"x": values}, ax=ax),
        "law": lambda ax: plots.law(
            [1, 2],
            {"a": np.ones((2, 3))},
            {"a": ([1, 2], [0.4, 0.6])},
            half={"a": 1.5},
            xlabel="n",
            ylabel="μ",
            ax=ax,
        ),
        "transfer_against_risk": lambda ax: plots.transfer_against_risk(
            [1], np.ones((1, 3)), np.ones((1, 3)), {"b": ([1, 2], [0.4, 0.6])}, ax=ax
        ),
        "walks": lambda ax: plots.walks(values, values[None], values[None], ax=ax),
        "transfer_matrix": lambda ax: plots.transfer_matrix(np.ones((2, 2)), ax=ax),
        "images": lambda ax: plots.images(np.zeros((2, 4, 4, 1)), ax=ax),
        "contour": lambda ax: plots.contour(values, values, np.outer(values, values), ax=ax),
        "barriers": lambda ax: plots.barriers({"a": values}, ax=ax),
        "slices": lambda ax: plots.slices(values, {"a": values}, ax=ax),
        "spectrum": lambda ax: plots.spectrum(values, {"a": (values, 0 * values)}, ax=ax),
        "meeting_matrix": lambda ax: plots.meeting_matrix(np.ones((2, 2)), ax=ax),
        "decision_section": lambda ax: plots.decision_section(
            values, values, np.outer(pair, pair), ax=ax
        ),
        "crossings": lambda ax: plots.crossings(values, values, values, ax=ax),
        "boundary_distances": lambda ax: plots.boundary_distances(
            values[None], values[None], names=["a"], ax=ax
        ),
        "boundaries": lambda ax: plots.boundaries(
            values, values, {"a": np.outer(pair, pair)}, ax=ax
        ),
        "interval_matrix": lambda ax: plots.interval_matrix(
            np.ones((2, 2, 3)), names=["a", "b"], label="c", ax=ax
        ),
        "half_ways": lambda ax: plots.half_ways(
            values, {"a": np.stack([values, values])}, {"a": [0.3, 0.4]}, ax=ax
        ),
        "named_rates": lambda ax: plots.named_rates({"a": [0.3, 0.2, 0.4]}, ax=ax),
        "rates_by_number": lambda ax: plots.rates_by_number(
            [[1, 2], [1, 2]], [[1, 1], [0, 1]], [[1, 0], [1, 0]], num_directions=3, ax=ax
        ),
        "numbers_of_directions": lambda ax: plots.numbers_of_directions(
            {"a": np.ones((2, 4), int)}, num_directions=3, ax=ax
        ),
        "parts": lambda ax: plots.parts({"a": values}, {"a": values}, margin=0.05, ax=ax),
        "mistakes": lambda ax: plots.mistakes([0.2, 0.3], [0.1, 0.1], names=["a", "b"], ax=ax),
        "partial_correlations": lambda ax: plots.partial_correlations(
            [0.5], [0.4], [0.6], [values - 0.5], names=["a"], expected=[1], ax=ax
        ),
    }
    others = {
        "dose_response",
        "forest",
        "gap_path",
        "memorization",
        "scatter_strata",
        "surface",
        "surrogate_curves",
    }  # several axes, or three-dimensional ones
    figures = {name for name, fn in vars(plots).items() if inspect.isfunction(fn) and _has_axes(fn)}
    assert {*draws} | others == figures
    for draw in draws.values():
        with plots.style():
            figure = plots.new_figure()
            before = figure.subplots(1, 2)
        assert draw(before[1]) is before[1]
        assert not before[0].has_data()
        figure.canvas.draw()
