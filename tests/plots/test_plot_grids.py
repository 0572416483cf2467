"""Matrices and images are drawn cell by cell, as they are given."""

import matplotlib
import numpy as np
import pytest

from halfway import plots

pytestmark = pytest.mark.quick


def test_transfer_matrix_writes_the_numbers_of_a_small_one():
    matrix = np.array([[0.7, 0.1, np.nan], [0.25, 0.5, -0.1]])
    ax = plots.transfer_matrix(matrix, surrogates=["MLP", "CNN"], label="share fooled")
    shown = {text.get_position(): text.get_text() for text in ax.texts}
    cells = [(column, row) for row in range(2) for column in range(3)]
    assert shown == {(2, 1): "-0.10"} | {
        (c, r): f"{matrix[r, c]:.2f}" for c, r in cells if np.isfinite(matrix[r, c])
    }
    (image,) = ax.images
    np.testing.assert_array_equal(np.asarray(image.get_array().filled(np.nan)), matrix)
    assert image.get_clim() == (-0.1, 0.7)
    ends = [image.to_rgba(value) for value in image.get_clim()]
    assert sum(ends[0][:3]) < sum(ends[1][:3])  # more is lighter, in grey too
    colors = {text.get_text(): text.get_color() for text in ax.texts}
    assert colors["0.70"] == plots.INK and colors["0.10"] == plots.PAPER
    assert [label.get_text() for label in ax.get_yticklabels()] == ["MLP", "CNN"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0", "1", "2"]
    assert ax.figure.axes[1].get_ylabel() == "share fooled"


def test_transfer_matrix_of_many_models_and_of_none():
    ax = plots.transfer_matrix(np.linspace(0.1, 0.9, 450).reshape(30, 15), limits=(0, 1))
    assert not ax.texts and ax.images[0].get_clim() == (0, 1)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["0", "10", "20"]
    assert len(ax.get_xticklabels()) == 15
    assert plots.transfer_matrix(np.full((1, 1), np.nan)).images[0].get_clim() == (0, 1)
    for wrong in (np.zeros(3), np.zeros((0, 3))):
        with pytest.raises(ValueError, match=r"\[K, M\] is needed"):
            plots.transfer_matrix(wrong)
    with pytest.raises(ValueError, match="2 and 3 names"):
        plots.transfer_matrix(np.zeros((3, 3)), surrogates=["a", "b"])


def test_images_shows_clean_change_and_attacked():
    clean = np.zeros((2, 4, 4, 1))
    clean[1, 0, 0] = 0.5
    attacked = clean.copy()
    attacked[0, 0, 0], attacked[1, 0, 0] = 0.1, 0.4
    ax = plots.images(clean, attacked, titles=["3", "8"], perturbed_titles=["→ 5", "→ 3"])
    pictures = [np.asarray(image.get_array()) for image in ax.images]
    assert len(pictures) == 6
    np.testing.assert_allclose(pictures[1], np.broadcast_to(clean[1], (4, 4, 3)))
    np.testing.assert_allclose(pictures[5], np.broadcast_to(attacked[1], (4, 4, 3)))
    up, down, paper = (
        matplotlib.colors.to_rgb(getattr(plots, name)) for name in ("VERMILLION", "BLUE", "PAPER")
    )
    np.testing.assert_allclose(pictures[2][0, 0], up)
    np.testing.assert_allclose(pictures[3][0, 0], down, atol=1e-12)
    np.testing.assert_allclose(pictures[2][1:], np.broadcast_to(paper, (3, 4, 3)))
    assert [label.get_text() for label in ax.get_yticklabels()] == ["clean", "change", "attacked"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["→ 5", "→ 3"]
    assert [text.get_text() for text in ax.texts] == ["3", "8"]


def test_images_in_colour_and_of_wrong_shapes():
    clean = np.full((1, 2, 3, 3), 0.5)
    change = np.zeros((1, 2, 3, 3))
    change[0, 0, 0] = [0.02, 0, -0.01]
    picture = np.asarray(plots.images(clean, clean + change).images[1].get_array())
    np.testing.assert_allclose(picture[0, 0], [1, 0.5, 0.25])
    assert len(plots.images(clean).images) == 1
    for images in ([clean, clean[:, :1]], [clean[..., :2]], [clean[0]]):
        with pytest.raises(ValueError, match=r"\[B, H, W, D\]"):
            plots.images(*images)
