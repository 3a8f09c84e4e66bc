"""What all figures share: arrays, axes and checks."""

import textwrap
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from pyro_vae.files import printable

SMALL = 8  # points


def as_array(values: Any) -> np.ndarray:
    """Return numbers as a numpy array in double precision, also those of a tensor on a device or with a gradient."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().double()
    return np.asarray(values, dtype=np.float64)


def as_points(values: ArrayLike, name: str) -> np.ndarray:
    """Return points of the plane, shape (n, 2)."""
    array = as_array(values)
    if array.ndim != 2 or array.shape[1] != 2 or not len(array):
        raise ValueError(f"{name} must have shape (n, 2), not {array.shape}")
    return array


def at_least_one(panels: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return panels, or refuse an empty mapping."""
    if not panels:
        raise ValueError("there are no panels to draw")
    return panels


def new_figure(title: str, width: float, height: float, columns: int = 1, **options: Any) -> tuple[Figure, list[Axes]]:
    """Return a figure with a title, and its axes."""
    heading = textwrap.fill(printable(" ".join(title.split())), int(10 * width))
    figure = Figure((width, height + 0.35 * len(heading.splitlines())), layout="compressed")
    if heading:
        figure.suptitle(heading, parse_math=False)  # the name of a data set may hold a dollar sign
    panels = list(figure.subplots(1, columns, squeeze=False, **options)[0])
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(which="both", labelsize=SMALL)
    return figure, panels
