"""A matrix of few rows whose cells show their intervals."""

import numpy as np
import pytest

from halfway import plots

pytestmark = pytest.mark.quick


def test_a_matrix_shows_its_intervals():
    matrix = np.array([[[0.5, 0.4, 0.6], [0.1, -0.1, 0.3]], [[0.2, -np.inf, np.inf], [np.nan] * 3]])
    ax = plots.interval_matrix(matrix, names=["a", "b"], label="share")
    words = sorted(text.get_text() for text in ax.texts)
    assert words == sorted(["0.50", "[0.40, 0.60]", "0.10", "[−0.10, 0.30]", "0.20"])
    assert len(ax.patches) == 2
    (image,) = ax.images
    assert image.get_clim() == (0, 0.5)
    assert {t.get_color() for t in ax.texts} <= {plots.INK, plots.PAPER}
    assert not plots.interval_matrix(matrix, names=["a", "b"], label="share", framed=False).patches
    with pytest.raises(ValueError, match=r"for 3 by 3 names; \[K, M, 3\] is needed"):
        plots.interval_matrix(matrix, names=["a", "b", "c"], label="share")
