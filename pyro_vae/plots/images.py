"""Figures of images, and of data that are drawn as curves.

Images are black at 0 and white at 1. If values lie outside this range, the least is black or the largest white, and the
figure says so; missing values, NaN, have a colour of their own.
"""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from pyro_vae.plots.figures import at_least_one, new_figure
from pyro_vae.plots.tiles import as_pictures, aspect_of, draw_tiles, near_square


def reconstructions(originals: ArrayLike, reconstructions: ArrayLike, title: str = "") -> Figure:
    r"""Draw data above their reconstructions.

    Arguments:
        originals: shape (n, \*shape), values in [0, 1] for pictures.
        reconstructions: of the same shape.
        title: title of the figure.

    Returns:
        A figure of two rows.

    Raises:
        ValueError: if the two differ in shape, or do not have the shape of data.

    Example:
        >>> len(reconstructions(np.zeros((5, 8, 8)), np.zeros((5, 8, 8))).axes)
        1
    """
    return _two_rows(originals, reconstructions, ("original", "reconstruction"), title)


def samples(images: ArrayLike, title: str = "") -> Figure:
    r"""Draw data in a near-square grid, row by row.

    Arguments:
        images: shape (n, \*shape), values in [0, 1] for pictures.
        title: title of the figure.

    Returns:
        A figure of one grid.

    Raises:
        ValueError: for an array that does not have the shape of data.

    Example:
        >>> samples(np.zeros((7, 8, 8))).axes[0].images[0].get_size()
        (24, 24)
    """
    return compare_samples({"": images}, title)


def compare_samples(panels: Mapping[str, ArrayLike], title: str = "") -> Figure:
    r"""Draw several near-square grids side by side, such as the samples of an autoencoder and of a VAE.

    Arguments:
        panels: the data of each grid, by its title; shape (n, \*shape), values in [0, 1] for pictures.
        title: title of the figure.

    Returns:
        A figure of one grid per panel.

    Raises:
        ValueError: if there are no panels, or for arrays that do not have the shape of data.

    Example:
        >>> figure = compare_samples({"autoencoder": np.zeros((9, 8, 8)), "VAE": np.zeros((9, 8, 8))})
        >>> [axes.get_title() for axes in figure.axes]
        ['autoencoder', 'VAE']
    """
    grids = {name: near_square(as_pictures(images)) for name, images in at_least_one(panels).items()}
    aspect = max(aspect_of(grid) * grid.shape[0] / grid.shape[1] for grid in grids.values())
    width = max(5.0, 4.5 * len(grids))
    figure, all_axes = new_figure(title, width, 4.5 * min(aspect, 1.6) + 0.4, columns=len(grids))
    for axes, (name, grid) in zip(all_axes, grids.items(), strict=True):
        draw_tiles(axes, grid)
        axes.set_title(name)
    return figure


def interpolation(latent: ArrayLike, pixels: ArrayLike, title: str = "") -> Figure:
    r"""Draw a decoded path between two data in latent space above the path in pixel space.

    Arguments:
        latent: decoded points of the straight line between two codes, shape (steps, \*shape).
        pixels: points of the straight line between the two data, of the same shape.
        title: title of the figure.

    Returns:
        A figure of two rows.

    Raises:
        ValueError: if the two differ in shape, or do not have the shape of data.

    Example:
        >>> rows = interpolation(np.zeros((10, 8, 8)), np.zeros((10, 8, 8))).axes[0].get_yticklabels()
        >>> [row.get_text() for row in rows]
        ['in latent space', 'in pixel space']
    """
    return _two_rows(latent, pixels, ("in latent space", "in pixel space"), title)


def completions(
    observed: ArrayLike, mean: ArrayLike, draws: ArrayLike, originals: ArrayLike | None = None, title: str = ""
) -> Figure:
    r"""Draw incomplete data beside their completions, one datum a row.

    Arguments:
        observed: the data with NaN where an entry is missing, shape (n, \*shape).
        mean: completed by means, of the same shape.
        draws: completed by draws, shape (m, n, \*shape).
        originals: the data before entries were hidden, of the shape of ``observed``, if they are known.
        title: title of the figure.

    Returns:
        A figure with a column for each kind.

    Raises:
        ValueError: for shapes that do not fit.

    Example:
        >>> images = np.zeros((3, 8, 8))
        >>> figure = completions(images, images, [images] * 4, originals=images)
        >>> [label.get_text() for label in figure.axes[0].get_xticklabels()]
        ['original', 'observed', 'mean', 'draw 1', 'draw 2', 'draw 3', 'draw 4']
    """
    named = {"original": originals} if originals is not None else {}
    named |= {"observed": observed, "mean": mean}
    pictures = {name: as_pictures(data) for name, data in named.items()}
    drawn = as_pictures(draws, 2)
    if any(each.shape != drawn.shape[1:] for each in pictures.values()):
        raise ValueError(
            f"the data must have one shape (n, *shape), and the draws (m, n, *shape), but have"
            f" {', '.join(str(each.shape) for each in pictures.values())} and {drawn.shape}"
        )
    tiles = np.concatenate([np.stack([*pictures.values()], 1), drawn.swapaxes(0, 1)], 1)
    rows, columns = tiles.shape[:2]
    width = min(12.0, 1.15 * columns + 0.5)
    figure, (axes,) = new_figure(title, width, width * min(2.0, aspect_of(tiles) * rows / columns) + 0.4)
    draw_tiles(axes, tiles)
    labels = [*pictures, *(f"draw {number}" for number in range(1, len(drawn) + 1))]
    axes.set_xticks(np.arange(columns) + 0.5, labels)
    axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
    return figure


def decoded_grid(images: ArrayLike, extent: tuple[float, float, float, float], title: str = "") -> Figure:
    r"""Draw the decoded points of an evenly spaced grid over a two-dimensional latent space, as one mosaic.

    Arguments:
        images: shape (rows, columns, \*shape), values in [0, 1] for pictures; row 0 belongs to the smallest z2 and is
            drawn at the bottom, column 0 belongs to the smallest z1.
        extent: (z1 min, z1 max, z2 min, z2 max), where the outermost images' centres lie.
        title: title of the figure.

    Returns:
        A figure with ticks in units of z.

    Raises:
        ValueError: for an array that does not have the shape of data, or an extent that does not ascend.

    Example:
        >>> figure = decoded_grid(np.zeros((4, 5, 8, 8)), (-2.0, 2.0, -1.5, 1.5))
        >>> [float(z) for z in figure.axes[0].get_xlim()]
        [-2.5, 2.5]

    Reference:
        Kingma and Welling, 2014, Auto-Encoding Variational Bayes, figure 4.
    """
    tiles = as_pictures(images, leading=2)
    rows, columns = tiles.shape[:2]
    if not (extent[0] <= extent[1] and extent[2] <= extent[3]):
        raise ValueError(f"extent is (z1 min, z1 max, z2 min, z2 max), not {extent!r}")
    figure, (axes,) = new_figure(title, 6.5, 6.5 * min(aspect_of(tiles) * rows / columns, 2) + 0.4)
    draw_tiles(axes, tiles[::-1], (*_outer_edges(*extent[:2], columns), *_outer_edges(*extent[2:], rows)))
    axes.set_xlabel("\n".join(["$z_1$", axes.get_xlabel()]).strip(), fontsize="medium")
    axes.set_ylabel("$z_2$")
    return figure


def _two_rows(upper: ArrayLike, lower: ArrayLike, names: tuple[str, str], title: str) -> Figure:
    above, below = as_pictures(upper), as_pictures(lower)
    if above.shape != below.shape:
        raise ValueError(f"both rows must have one shape, not {above.shape} and {below.shape}")
    tiles = np.stack([above, below])
    cell = min(1.0, 15 / len(above))
    figure, (axes,) = new_figure(title, max(4.5, cell * len(above) + 1.2), 2 * cell * aspect_of(tiles) + 0.2)
    draw_tiles(axes, tiles)
    axes.set_yticks([0.5, 1.5], names, fontsize=10)
    axes.tick_params(length=0)
    return figure


def _outer_edges(low: float, high: float, count: int) -> tuple[float, float]:
    """Return where the outer tiles end, if their centres lie at low and high."""
    half = (high - low) / max(count - 1, 1) / 2 or 0.5
    return low - half, high + half
