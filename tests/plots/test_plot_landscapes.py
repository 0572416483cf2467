"""Figures of landscapes draw the numbers they are given."""

import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgb

from halfway import plots

pytestmark = pytest.mark.quick

X, Y = np.linspace(-1, 2, 7), np.linspace(0, 4, 5)
BOWL = 0.1 + X[None] ** 2 + Y[:, None]


def lines(ax):
    return {line.get_label(): line for line in ax.lines}


def test_contour_draws_walks_points_and_levels():
    walk = np.array([[0.0, 0.0], [0.5, 1.0], [1.0, 3.0]])
    ax = plots.contour(
        X,
        Y,
        BOWL,
        walks={"walk of A": walk},
        points={"θ_0": (0, 0)},
        title="L_A",
        xlabel="x of θ_A",
    )
    np.testing.assert_array_equal(lines(ax)["walk of A"].get_xydata(), walk)
    assert ax.get_xlim() == (-1, 2) and ax.get_ylim() == (0, 4)
    assert ax.get_aspect() == 1  # distances are distances
    drawn = [text.get_text() for text in ax.texts]
    assert plots.symbols("θ_0") in drawn and "$" in plots.symbols("θ_0")
    fills = [to_hex(c) for c in ax.collections[0].get_facecolor()]
    assert set(fills) == {plots.GREY}
    strengths = ax.collections[0].get_facecolor()[:, 3]
    assert (np.diff(strengths) > 0).all()  # darker where higher


def test_contour_levels_go_by_ratio_where_all_is_positive():
    values = np.geomspace(1e-3, 1e3, 1001)
    levels = plots.contour_levels(values)
    np.testing.assert_allclose(levels[1:] / levels[:-1], levels[1] / levels[0])
    assert levels[0] == pytest.approx(1e-3 * levels[-1]) and levels[-1] < 1e3
    np.testing.assert_allclose(np.diff(plots.contour_levels(np.linspace(-1, 1, 101), 5)), 0.48)
    plain = plots.contour_levels(np.full((3, 3), 0.25))
    assert (np.diff(plain) > 0).all()
    assert np.isfinite(plots.contour_levels([1.0, np.nan, np.inf, 2.0])).all()


def test_contour_with_a_diverged_corner_and_of_nothing():
    values = BOWL.copy()
    values[0, 0] = np.inf
    assert plots.contour(X, Y, values).get_xlim() == (-1, 2)
    with pytest.raises(ValueError, match="no finite value"):
        plots.contour(X, Y, np.full_like(BOWL, np.nan))
    with pytest.raises(ValueError, match=r"shape \(7, 5\) for 7 x and 5 y"):
        plots.contour(X, Y, BOWL.T)
    with pytest.raises(ValueError, match="at most 3"):
        plots.contour(X, Y, BOWL, walks={str(i): np.zeros((2, 2)) for i in range(4)})


def test_surface_cuts_what_would_flatten_the_rest():
    steep = BOWL.copy()
    steep[0, 0] = 1e6
    ax = plots.surface(X, Y, steep, zlabel="L_A")
    assert ax.get_zlim()[1] < 1e6
    assert ax.get_zlabel() == plots.symbols("L_A")


def test_barriers_are_means_over_finite_pairs():
    t = np.linspace(0, 1, 5)
    raw = np.stack([4 * t * (1 - t), 8 * t * (1 - t), np.full(5, np.nan)])
    ax = plots.barriers({"raw": raw, "matched": 0.1 * raw[:2]})
    means = [line.get_ydata() for line in ax.lines if len(line.get_xdata()) == 5]
    np.testing.assert_allclose(means[0], 6 * t * (1 - t), atol=1e-12)
    np.testing.assert_allclose(means[1], 0.6 * t * (1 - t), atol=1e-12)
    named = [text.get_text() for text in ax.get_legend().get_texts()]
    assert named == ["raw", "matched"]
    with pytest.raises(ValueError, match="matched has no pair with finite values"):
        plots.barriers({"matched": raw[2:]})


def test_a_control_of_barriers_is_grey_and_takes_no_colour():
    values = np.array([[0.0, 1.0, 0.0], [0.0, 3.0, 0.0]])
    lines = {"raw": values, "a": values / 2, "b": values / 3, "c": values / 4}
    ax = plots.barriers(lines, control="raw")
    drawn = {line.get_label(): line.get_color() for line in ax.lines}
    assert drawn["raw"] == plots.GREY
    assert [drawn[name] for name in "abc"] == list(plots.COLORS)
    with pytest.raises(ValueError, match="at most 3"):
        plots.barriers(lines)


def test_slices_are_means_over_models_around_the_model():
    t = np.linspace(-1, 1, 9)
    losses = np.stack([t**2, 3 * t**2])
    ax = plots.slices(t, {"L_A": losses, "L_B": 1 + losses}, ylabel="loss")
    np.testing.assert_allclose(lines(ax)["L_A"].get_xydata().T, [t, 2 * t**2])
    np.testing.assert_allclose(lines(ax)["L_B"].get_ydata(), 1 + 2 * t**2)
    named = {text.get_text(): text.xy[1] for text in ax.texts}
    assert named.keys() == {plots.symbols(name) for name in ("L_A", "L_B")}
    low, high = sorted(named.values())
    assert high - low > 0.15  # of the axes' height: they can be read


def test_spectrum_shows_density_band_and_largest():
    grid = np.linspace(-1, 5, 50)
    density = np.exp(-(grid**2))
    ax = plots.spectrum(
        grid,
        {"θ_A": (density, 0.1 * density), "start": (density, density)},
        tops={"θ_A": [4.0, 3.0]},
        floor=1e-4,
    )
    assert ax.get_yscale() == "log" and ax.get_ylim()[0] == 1e-4
    curve = lines(ax)[plots.symbols("θ_A")].get_ydata()
    np.testing.assert_allclose(curve, np.maximum(density, 1e-5))
    marks = [line.get_xdata() for line in ax.lines if line.get_marker() == "|"]
    np.testing.assert_array_equal(marks[0], [4.0, 3.0])


def test_meeting_matrix_is_white_at_zero():
    values = np.array([[2.0, 0.0], [-1.0, 1.0]])
    ax = plots.meeting_matrix(values, classes=["cat", "dog"])
    (image,) = ax.images
    assert image.get_clim() == (-2, 2)
    np.testing.assert_allclose(image.to_rgba(0.0)[:3], to_rgb(plots.PAPER), atol=0.01)
    blue, orange = image.to_rgba(2.0), image.to_rgba(-2.0)
    assert blue[2] > blue[0] and orange[0] > orange[2]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["cat", "dog"]
    assert plots.meeting_matrix(np.zeros((3, 3))).images[0].get_clim() == (-1, 1)
    with pytest.raises(ValueError, match="with 1 names"):
        plots.meeting_matrix(values, classes=["cat"])


def test_legends_lie_beside_what_fills_the_axes():
    t = np.linspace(-1, 1, 9)
    walk = np.stack([t, t], 1)
    ax = plots.contour(t, t, np.add.outer(t**2, t**2) + 0.1, walks={"walk of A": walk})
    ax.figure.canvas.draw()
    assert ax.get_legend().get_window_extent().y1 < ax.get_window_extent().y0
    ax = plots.spectrum(t, {"a": (np.exp(-(t**2)), 0 * t), "b": (np.exp(-t), 0 * t)})
    ax.figure.canvas.draw()
    assert ax.get_legend().get_window_extent().y0 >= ax.get_window_extent().y1 - 1


def test_ticks_of_panels_side_by_side_do_not_meet():
    """The outermost numbers of two panels were one word."""
    t = np.linspace(-1, 1, 9)
    figure = plots.new_figure(9, 4)
    axes = figure.subplots(1, 2, sharey=True)
    for ax in axes:
        plots.contour(t, t, np.add.outer(t**2, t**2) + 0.1, ax=ax)
    figure.canvas.draw()
    left, right = ([label.get_window_extent() for label in ax.get_xticklabels()] for ax in axes)
    low, high = (ax.get_window_extent() for ax in axes)
    assert max(box.x1 for box in left) < low.x1 and min(box.x0 for box in right) > high.x0


@pytest.mark.parametrize(("sign", "limits"), [(1, (0, 2)), (-1, (-2, 0))])
def test_meeting_matrix_of_one_sign_has_all_its_colours_for_it(sign, limits):
    (image,) = plots.meeting_matrix(sign * np.array([[2.0, 0.5], [0.0, 1.0]])).images
    assert image.get_clim() == limits
    np.testing.assert_allclose(image.to_rgba(0.0)[:3], to_rgb(plots.PAPER), atol=0.01)
    red, _, blue, _ = image.to_rgba(2.0 * sign)
    assert (blue > red) == (sign > 0)


def test_decision_section_names_each_class_once_inside_its_region():
    x = y = np.linspace(-1, 1, 21)
    across, up = np.meshgrid(x, y)
    decisions = np.where(across**2 + up**2 < 0.3, 3, np.where(across > 0, 7, 2))
    ax = plots.decision_section(
        x, y, decisions, points={"x": (0, 0)}, classes={2: "b", 3: "c", 7: "g"}
    )
    named = {text.get_text(): text.get_position() for text in ax.texts if text.get_text() in "bcg"}
    for name, number in {"b": 2, "c": 3, "g": 7}.items():
        column, row = (np.argmin(np.abs(x - v)) for v in named[name])
        assert decisions[row, column] == number
    assert np.hypot(*named["c"]) > 0.1  # not on the point
    with pytest.raises(ValueError, match="12 classes; at most 10"):
        plots.decision_section(range(12), range(1), np.arange(12)[None])
