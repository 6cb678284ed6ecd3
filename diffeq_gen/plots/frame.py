"""The frame of every picture: axes side by side in one style."""

from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

__all__ = ["frame"]

STYLE = {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25, "font.size": 10}


def frame(columns: int = 1, *, width: float = 6.0, height: float = 3.6) -> tuple[Figure, list[Any]]:
    """A figure and its axes, left to right, each `width` by `height` inches."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width * columns, height), layout="constrained")
        return figure, [figure.add_subplot(1, columns, i + 1) for i in range(columns)]
