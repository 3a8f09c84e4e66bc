"""Figures of how far an encoder's posteriors are from the exact ones."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from pyro_vae.plots.figures import as_array, as_points, new_figure

DOTS = 500  # draws of each posterior, at most


def gaps(approximation: ArrayLike, amortization: ArrayLike, title: str = "") -> Figure:
    """Draw what the bound of each datum loses: by the family of the guide, and on top of it by its network.

    Arguments:
        approximation: what the best posterior of the family loses for each datum, in nats, shape (n,).
        amortization: what the encoder loses against that one, shape (n,).
        title: title of the figure.

    Returns:
        A figure in which the data are in the order of their loss.

    Raises:
        ValueError: for arrays of another shape.

    Example:
        >>> [text.get_text() for text in gaps([0.5, 1.0], [1.5, 1.0]).legends[0].get_texts()]
        ['lost by the family: 0.75 in the mean', 'lost by the network: 1.25 in the mean']
    """
    parts = [as_array(approximation), as_array(amortization)]
    if parts[0].ndim != 1 or parts[0].shape != parts[1].shape or not parts[0].size:
        raise ValueError(f"gaps must have one shape (n,), not {parts[0].shape} and {parts[1].shape}")
    family, network = (part[np.argsort(sum(parts))] for part in parts)
    figure, (axes,) = new_figure(title, 8, 3.8)
    places = np.arange(1, len(family) + 1)
    names = (
        f"lost by the {name}: {part.mean():.2f} in the mean"
        for name, part in zip(("family", "network"), parts, strict=True)
    )
    for low, part, colour in ((0, family, "tab:blue"), (family, network, "tab:orange")):
        axes.bar(places, part, bottom=low, width=1, color=colour, label=next(names))
    axes.axhline(0, color="0.3", linewidth=0.8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set(xlabel="data, in the order of what is lost", ylabel="nats", xlim=(0.5, len(family) + 0.5))
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def ranks(ranks: ArrayLike, draws: int, low: ArrayLike, high: ArrayLike, title: str = "") -> Figure:
    """Draw the distribution function of each dimension's ranks, less that of uniform ranks, in the band of chance.

    Arguments:
        ranks: ranks from 0 to ``draws``, for each dimension, shape (n, D).
        draws: L, the number of draws.
        low: the lowest shares of ranks below 1, ..., L that chance gives, shape (L,).
        high: the highest ones.
        title: title of the figure.

    Returns:
        A figure in which the lines of exact posteriors stay in the band; those that leave it are orange.

    Raises:
        ValueError: for arrays whose shapes do not fit.

    Example:
        >>> figure = ranks(np.arange(100)[:, None] % 4, 3, [0.1, 0.3, 0.6], [0.4, 0.7, 0.9])
        >>> figure.axes[0].get_title()
        '1 of 1 dimensions stay within chance (grey)'

    Reference:
        Säilynoja, Bürkner and Vehtari, 2022, Graphical Test for Discrete Uniformity, figure 2.
    """
    values, lowest, highest = as_array(ranks), as_array(low), as_array(high)
    if values.ndim != 2 or not values.size or lowest.shape != (draws,) or highest.shape != (draws,):
        raise ValueError(
            f"ranks must have shape (n, D), and low and high ({draws},), not {values.shape}, {lowest.shape} and"
            f" {highest.shape}"
        )
    shares = np.arange(1, draws + 1) / (draws + 1)
    below = (values[:, :, None] < np.arange(1, draws + 1)).mean(0)  # (D, L)
    outside = ((below < lowest) | (below > highest)).any(-1)
    figure, (axes,) = new_figure(title, 8, 3.8)
    axes.fill_between(shares, lowest - shares, highest - shares, color="0.88", label="chance, 99 %")
    for number, line in enumerate(below):
        axes.plot(shares, line - shares, color="tab:orange" if outside[number] else "tab:blue", linewidth=1, alpha=0.8)
    inside = len(below) - int(outside.sum())
    axes.set_title(f"{inside} of {len(below)} dimensions stay within chance (grey)", fontsize="medium")
    if outside.any():
        axes.plot([], color="tab:orange", label=f"outside: dimension {_listed(outside.nonzero()[0])}")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    axes.set(xlabel="rank, as a share", ylabel="share of ranks below, less expected", xlim=(0, 1))
    return figure


def _listed(numbers: np.ndarray) -> str:
    return ", ".join(map(str, numbers[:10])) + (", ..." if len(numbers) > 10 else "")


def posterior_pairs(pairs: Sequence[tuple[ArrayLike, ArrayLike]], dimensions: Sequence[int], title: str = "") -> Figure:
    """Draw draws from encoders' posteriors beside those from the exact ones, in two dimensions.

    Arguments:
        pairs: for each datum, draws from the encoder and from the exact posterior, each of shape (n, 2).
        dimensions: the numbers of the two dimensions.
        title: title of the figure.

    Returns:
        A figure with a panel for each datum.

    Raises:
        ValueError: for no pairs, or arrays that are no points in two dimensions.

    Example:
        >>> [axes.get_xlabel() for axes in posterior_pairs([(np.zeros((9, 2)), np.ones((9, 2)))], [3, 7]).axes]
        ['dimension 3']
    """
    if not pairs:
        raise ValueError("there are no posteriors to draw")
    figure, panels = new_figure(title, 3.7 * len(pairs), 3.8, columns=len(pairs))
    for number, (axes, pair) in enumerate(zip(panels, pairs, strict=True)):
        for draws, name, colour in zip(pair, ("encoder", "exact"), ("tab:blue", "tab:orange"), strict=True):
            points = as_points(draws, name)
            points = points[:: max(1, len(points) // DOTS)]
            axes.scatter(points[:, 0], points[:, 1], s=6, alpha=0.5, color=colour, linewidths=0, label=name)
        axes.set_title(f"test datum {number}", fontsize="medium")
        axes.set(xlabel=f"dimension {dimensions[0]}", ylabel=f"dimension {dimensions[1]}")
        axes.set_aspect("equal", adjustable="datalim")
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, markerscale=3
    )
    return figure
