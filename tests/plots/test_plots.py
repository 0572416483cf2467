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


@pytest.mark.quick
def test_pyplot_is_never_imported():
    code = (
        "import sys, halfway.plots as p; p.new_figure().subplots(); "
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.quick
def test_symbols_there_and_back():
    assert plots.symbols("M_θ, num_pairs") == r"$M_{\mathrm{θ}}$, num_pairs"
    figure = plots.new_figure()
    label = figure.text(0, 0, plots.symbols("M_θ/(1 − ρ) of n_half"))
    drawn = label.get_text()
    with plots.plain_symbols(figure):
        assert label.get_text() == "M_θ/(1 − ρ) of n_half"
    assert label.get_text() == drawn


@pytest.mark.quick
def test_mean_interval_is_the_t_interval():
    values = np.array([1.0, 2.0, 4.0, np.nan])
    mean, low, high = plots.mean_interval(values)
    expected = stats.ttest_1samp(values[:3], 0).confidence_interval(0.95)
    np.testing.assert_allclose((mean, low, high), (7 / 3, expected.low, expected.high))
    assert plots.mean_interval([3.0])[0] == 3.0
    assert np.isnan(plots.mean_interval([3.0])[1:]).all()
    assert np.isnan(plots.mean_interval([np.nan])).all()
    # Of a share, what the interval says beyond 1 is cut off.
    mean, low, high = plots.mean_interval([0.8, 0.9, 1.0])
    assert high > 1 and plots.mean_interval([0.8, 0.9, 1.0], (0, 1)) == (mean, low, 1.0)


@pytest.mark.quick
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


@pytest.mark.quick
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


@pytest.mark.quick
def test_walks_draws_both_landscapes_and_their_descents():
    followed = np.array([[0.9, 0.5, 0.1, 0.0], [0.7, 0.5, 0.3, 0.2]])
    other = followed + np.array([0.0, 0.1, 0.2, 0.3])
    ax = plots.walks([0, 10, 30], followed, other, ylabel="error")
    lower, upper = followed.mean(0), other.mean(0)
    assert has_line(ax, np.stack([[0, 10, 30], lower[1:]], 1))
    assert has_line(ax, np.stack([[0, 10, 30], upper[1:]], 1))
    assert has_line(ax, [[0, 0.8], [1, 0.8]])  # the start: the same for both
    arrows = [(text.xyann[1], text.xy[1]) for text in ax.texts if text.arrow_patch]
    np.testing.assert_allclose(arrows, [(0.8, lower[-1]), (0.8, upper[-1])])
    assert {"own half", "other half", "best constant\npredictor"} <= set(words(ax))
    band = ax.collections[0].get_paths()[0].vertices
    expected = stats.ttest_1samp(followed[:, -1], 0).confidence_interval(0.95)
    assert np.isclose(band, [30, expected.high]).all(axis=1).any()


def test_walks_that_begin_where_progress_is_counted_from():
    rise = -np.array([[0.0, 1.0, 2.0], [0.0, 1.5, np.nan]])
    ax = plots.walks([0, 1, 2], rise, rise / 2, names=("surrogate", "target"), start="clean")
    assert has_line(ax, np.stack([[0, 1, 2], [0, -1, -2]], 1))  # the pair that diverged leaves
    assert {"surrogate", "target", "clean"} <= set(words(ax))
    for steps, followed in (([0, 1, 2, 3, 4], rise), ([0, 1, 2], rise[0])):
        with pytest.raises(ValueError, match=r"they are \[P, T\]"):
            plots.walks(steps, followed, followed)
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
        plots.scatter_transfer_gap(values, values, values, names=["CNN"] * 6, xlabel=long),
        plots.budget_curve(values, {name: values}, xlabel=long, ylabel=long),
        plots.walks(
            values,
            values[None],
            values[None],
            names=(name, name),
            start=name,
            xlabel=long,
            ylabel=long,
        ),
        plots.spectral_law(
            values[1:],
            {name: (np.ones((5, 3)), np.ones((5, 3)))},
            {name: (values[1:], values[1:], values[1:])},
            xlabel=long,
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


def has_bar(ax, low, high):
    """Whether an interval is drawn between two heights."""
    bars = [segment for bars in ax.collections for segment in bars.get_segments()]
    return any(np.allclose(bar[:, 1], [low, high]) for bar in bars)


@pytest.mark.quick
def test_a_law_is_a_line_with_points_and_marks_one_half():
    measured = {"MLP": [[0.3, 0.2, 0.4], [0.7, 0.6, np.inf]]}
    line = {"MLP": ([1, 10, 100], [0.1, 0.5, 0.9])}
    ax = plots.law([2, 50], measured, line, half={"MLP": 10.0}, xlabel="n", ylabel="μ_θ")
    assert has_line(ax, [[1, 0.1], [10, 0.5], [100, 0.9]])
    assert has_line(ax, [[2, 0.3], [50, 0.7]])
    assert has_bar(ax, 0.2, 0.4)
    assert has_line(ax, [[10, 0.5]])
    assert ax.get_xscale() == "log"
    ax.figure.canvas.draw()


@pytest.mark.quick
def test_spectral_law_shows_values_and_gradients_of_each_level():
    measured = {
        "σ² = 0": ([[0.8, 0.7, 0.9], [0.9, 0.8, 1.0]], [[0.5, 0.4, 0.6], [0.6, 0.5, np.inf]]),
        "σ² = 1": ([[0.4, 0.3, 0.5], [0.5, 0.4, 0.6]], [[0.1, 0.0, 0.2], [0.2, 0.1, 0.3]]),
    }
    at = np.array([20.0, 60.0, 200.0])
    predicted = {
        level: (at, np.linspace(0.3, 0.9, 3) - shift, np.linspace(0.2, 0.7, 3) - shift)
        for shift, level in enumerate(measured)
    }
    ax = plots.spectral_law([30, 100], measured, predicted)
    for level, (functions, inputs) in measured.items():
        for line, points in zip(predicted[level][1:], (functions, inputs), strict=True):
            assert has_line(ax, np.stack([at, line], 1))
            assert has_line(ax, np.stack([[30, 100], np.array(points)[:, 0]], 1))
            assert has_bar(ax, *points[0][1:])
    assert ax.get_xscale() == "log"
    dashes = {line.get_color(): [] for line in ax.lines}
    for line in ax.lines:
        if np.shape(line.get_xdata()) == at.shape:
            dashes[line.get_color()].append(line.get_linestyle())
    assert dashes[plots.BLUE] == dashes[plots.VERMILLION] == ["-", "--"]
    named = [text.get_text() for text in ax.get_legend().get_texts()]
    assert named[:2] == list(measured) and len(named) == 4
    ax.figure.canvas.draw()
    with pytest.raises(ValueError, match="spectral_law: 4 lines; at most 3"):
        plots.spectral_law([1], dict.fromkeys("abcd", ([], [])), {})


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


@pytest.mark.quick
def test_every_figure_is_drawn_on_the_axes_given():
    values, pair = np.linspace(0.1, 0.9, 6), np.arange(6) % 2
    draws = {
        "pair_comparison": lambda ax: plots.pair_comparison(
            values, values[None], names=["a"], treatment="b", control_names=["c"], xlabel="d", ax=ax
        ),
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
        "spectral_law": lambda ax: plots.spectral_law(
            [1, 2],
            {"a": (np.ones((2, 3)), np.ones((2, 3)))},
            {"a": ([1, 2], [0.4, 0.6], [0.2, 0.3])},
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
        "interval_matrix": lambda ax: plots.interval_matrix(
            np.ones((2, 2, 3)), names=["a", "b"], label="c", ax=ax
        ),
        "mistakes": lambda ax: plots.mistakes([0.2, 0.3], [0.1, 0.1], names=["a", "b"], ax=ax),
    }
    others = {
        "forest",
        "surface",
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
