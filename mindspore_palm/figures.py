"""Charts as PNG files, by matplotlib's objects alone, independent of the backend that a notebook or user has set."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

from mindspore_palm.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BACKEND = "MPLBACKEND"  # importing matplotlib fails if it names a backend that is not installed


def make_figure(columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure with one row of axes.

    Args:
        columns: number of axes.
        width: width of the figure in inches.
        height: height of the figure in inches.
    """
    backend = os.environ.pop(BACKEND, None)
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    finally:
        if backend is not None:
            os.environ[BACKEND] = backend
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(1, columns, squeeze=False)
    for axes in grid[0]:
        axes.grid(alpha=0.25)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, list(grid[0])


def save_figure(figure: Figure, file: Path, dpi: int) -> None:
    """Writes a figure as a PNG, atomically.

    Raises:
        OSError: the file cannot be written; with its name.
    """
    image = io.BytesIO()
    figure.savefig(image, dpi=dpi, format="png")
    with write_atomically(file) as stream:
        stream.write(image.getvalue())
