"""What a figure shows: its lines, its words, and whether they lie inside it."""

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg

from halfway import plots


def lines(ax):
    """Returns the points `[N, 2]` of each line of an axes."""
    return [np.transpose(np.broadcast_arrays(*line.get_data())) for line in ax.lines]


def has_line(ax, points):
    """Returns whether a line of an axes goes through exactly these points `[N, 2]`."""
    points = np.asarray(points, float)
    return any(line.shape == points.shape and np.allclose(line, points) for line in lines(ax))


def blue(ax):
    """Returns the heights of the first blue line."""
    return next(line.get_ydata() for line in ax.lines if line.get_color() == plots.BLUE)


def words(ax):
    """Returns the texts that are written into an axes."""
    return [text.get_text() for text in ax.texts]


def assert_inside(figure):
    """Fails where something that is drawn reaches beyond the figure."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    box, (width, height) = figure.get_tightbbox(renderer), figure.get_size_inches()
    assert min(box.x0, box.y0) >= -0.02
    assert box.x1 <= width + 0.02 and box.y1 <= height + 0.02


def assert_drawn_on_the_axes_given(draw):
    """Fails where `draw(ax)` draws on other axes of the figure too, or returns others."""
    with plots.style():
        axes = plots.new_figure().subplots(1, 2)
    assert draw(axes[1]) is axes[1]
    assert not axes[0].has_data()
    axes[1].figure.canvas.draw()
