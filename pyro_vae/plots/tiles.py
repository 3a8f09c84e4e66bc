"""Tiles: many small pictures or curves in one panel."""

import math

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgb
from numpy.typing import ArrayLike

from pyro_vae.plots.figures import SMALL, as_array

_MISSING = "tab:pink"
_PIECES = 1000  # of a long curve, which has fewer pixels


def as_pictures(images: ArrayLike, leading: int = 1) -> np.ndarray:
    """Return data as (*leading, h, w), (*leading, h, w, 3), or (*leading, d) if they are a single row or column."""
    array = as_array(images)
    shape = array.shape[leading:]
    if len(shape) not in (1, 2) and shape[:-2] not in ((1,), (3,)):
        before = ("", "n, ", "rows, columns, ")[leading]
        wanted = f"({before}*shape), *shape being (h, w), (1, h, w), (3, h, w) or (d,)"
        raise ValueError(f"data must have shape {wanted}, but have {array.shape}")
    if not array.size:
        raise ValueError(f"there is nothing to draw in data of shape {array.shape}")
    if len(shape) == 3 and shape[0] == 3:
        return np.moveaxis(array, leading, -1)
    if 1 in shape[-2:] and len(shape) > 1:  # such as sound with one channel
        return array.reshape(*array.shape[:leading], -1)
    return array.squeeze(leading) if len(shape) == 3 else array


def aspect_of(tiles: np.ndarray) -> float:
    """Return the height of a tile divided by its width: 0.75 for a curve, and from 0.25 to 4 for a picture."""
    return 0.75 if tiles.ndim == 3 else min(4.0, max(0.25, tiles.shape[2] / tiles.shape[3]))


def near_square(data: np.ndarray) -> np.ndarray:
    """Return data in rows and columns; the last row is filled up with empty curves, or with white pictures."""
    columns = math.ceil(math.sqrt(len(data)))
    rows = math.ceil(len(data) / columns)
    empty = np.full((rows * columns - len(data), *data.shape[1:]), np.nan if data.ndim == 2 else np.inf)
    return np.concatenate([data, empty]).reshape(rows, columns, *data.shape[1:])


def draw_tiles(axes: Axes, tiles: np.ndarray, box: tuple[float, float, float, float] | None = None) -> None:
    """Draw data of shape (rows, columns, ...) from top to bottom, in a box (left, right, bottom, top) of the axes.

    Pictures are black at 0 and white at 1, or at the least and the largest value if these lie outside [0, 1].
    """
    rows, columns = tiles.shape[:2]
    left, right, bottom, top = box or (0, columns, rows, 0)
    width, height = (right - left) / columns, (top - bottom) / rows
    if tiles.ndim == 3:
        axes.add_collection(_curves_in_cells(tiles, left, top, width, height))
    else:
        mosaic = _shades(np.concatenate(np.concatenate(tiles, axis=1), axis=1))
        greys = matplotlib.colormaps["gray"].with_extremes(bad=_MISSING)
        image = axes.imshow(mosaic, cmap=greys, vmin=0, vmax=1, interpolation="nearest", origin="upper")
        image.set_extent((left, right, bottom, top))
    axes.set(xlim=(left, right), ylim=(bottom, top), aspect=aspect_of(tiles) * abs(width / height))
    axes.set_anchor("N")
    axes.grid(False)
    if box is None:
        axes.spines[:].set_visible(False)
        axes.set(xticks=[], yticks=[])
    axes.set_xlabel(caption_of(tiles), fontsize=SMALL)
    colour = "0.8" if tiles.ndim == 3 else axes.figure.get_facecolor()
    between = {"colors": colour, "linewidths": min(1.0, 10 / columns)}
    axes.vlines(left + width * np.arange(1, columns), bottom, top, **between)
    axes.hlines(bottom + height * np.arange(1, rows), left, right, **between)


def caption_of(tiles: np.ndarray) -> str:
    """Describe the heights of curves; for pictures, describe what is unusual: other limits, missing values."""
    if tiles.ndim == 3:
        low, high = _range(tiles)
        return f"heights from {low:.3g} to {high:.3g}"
    black, white = _limits(tiles)
    said = [f"black is {black:.3g}, white {white:.3g}"] if (black, white) != (0, 1) else []
    said += [f"missing values are {_MISSING.removeprefix('tab:')}"] if np.isnan(tiles).any() else []
    return "\n".join(said)


def _range(tiles: np.ndarray) -> tuple[float, float]:
    """Return the least and the largest finite number; NaN if there is none."""
    numbers = tiles[np.isfinite(tiles)]
    return (numbers.min(), numbers.max()) if numbers.size else (math.nan, math.nan)


def _limits(pictures: np.ndarray) -> tuple[float, float]:
    """Return the value that is drawn black and the value that is drawn white."""
    low, high = _range(pictures)
    return float(np.fmin(0, low)), float(np.fmax(1, high))


def _shades(mosaic: np.ndarray) -> np.ndarray:
    """Return a picture's values from 0 for black to 1 for white; missing colours get the colour of gaps."""
    black, white = _limits(mosaic)
    shades = np.clip((mosaic - black) / (white - black), 0, 1)
    return np.where(np.isnan(shades).any(-1, keepdims=True), to_rgb(_MISSING), shades) if shades.ndim == 3 else shades


def _thinned(curves: np.ndarray) -> np.ndarray:
    """Return curves of at most 2,000 points, which look the same: of each short piece, the least and largest number."""
    length = curves.shape[-1]
    if length <= 2 * _PIECES:
        return curves
    starts = np.arange(_PIECES) * length // _PIECES
    ends = [extreme.reduceat(curves, starts, axis=-1) for extreme in (np.fmin, np.fmax)]
    return np.stack(ends, -1).reshape(*curves.shape[:-1], 2 * _PIECES)


def _curves_in_cells(tiles: np.ndarray, left: float, top: float, width: float, height: float) -> LineCollection:
    """Return curves of shape (rows, columns, d) as lines, all on one scale, each in the middle of its cell."""
    tiles = np.repeat(tiles, 2, axis=-1) if tiles.shape[-1] == 1 else _thinned(tiles)
    low, high = _range(tiles)
    up = (tiles - low) / (high - low) if high > low else np.full_like(tiles, 0.5)
    row, column = np.indices(tiles.shape[:2])[..., None]
    x = left + width * (column + np.linspace(0.08, 0.92, tiles.shape[-1]))
    y = top - height * (row + 0.9 - 0.8 * up)
    return LineCollection([*np.stack([x, y], -1).reshape(-1, tiles.shape[-1], 2)], colors="tab:blue", linewidths=1)
