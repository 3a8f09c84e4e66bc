"""Figures of gradient estimators and of differences."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from pyro_vae.plots.figures import as_array, at_least_one, new_figure


def gradients(pathwise: ArrayLike, score_function: ArrayLike, title: str = "") -> Figure:
    """Draw how two estimates of one gradient scatter: the reparameterized one and the score-function one.

    The left panel shows all draws, on a logarithmic vertical axis; the right one the range of the narrower estimate.

    Arguments:
        pathwise: projections of single-draw gradients on one direction, shape (n,), n at least 2.
        score_function: those of the other estimate, shape (m,), m at least 2.
        title: title of the figure.

    Returns:
        A figure of two panels, each with shared bins and the means as lines.

    Raises:
        ValueError: for arrays of another shape, or numbers that are not finite.

    Example:
        >>> gradients([0.9, 1.1], [-9.0, 11.0]).axes[0].get_title()
        'variance of the projections, score function / pathwise: 1e+04'

    Reference:
        Kingma and Welling, 2014, Auto-Encoding Variational Bayes, section 2.2.
    """
    draws = [as_array(pathwise), as_array(score_function)]
    if any(values.ndim != 1 or len(values) < 2 for values in draws):
        raise ValueError(f"draws must have shape (n,), n at least 2, not {draws[0].shape} and {draws[1].shape}")
    variances = [values.var(ddof=1) for values in draws]
    figure, (whole, narrow) = new_figure(title, 11, 4.6, columns=2)
    _histograms(whole, draws, np.concatenate(draws))
    _histograms(narrow, draws, draws[int(np.argmin(variances))])
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.divide(*variances[::-1])
        whole.set_title(f"variance of the projections, score function / pathwise: {ratio:.4g}", fontsize="medium")
    whole.set(yscale="log", ylabel="share of the draws")
    narrow.set_title("the range of the narrower one", fontsize="medium")
    figure.legend(*whole.get_legend_handles_labels(), loc="outside lower center", frameon=False)
    return figure


def estimators(
    names: Sequence[str], variances: Mapping[str, ArrayLike], biased: Sequence[bool], title: str = ""
) -> Figure:
    """Draw the variance of gradient estimators, one panel per block of parameters, on a logarithmic axis.

    Arguments:
        names: names of the estimators, length n.
        variances: for each block's name, the variances, shape (n,); zeros are drawn as arrows at the left edge.
        biased: whether each estimator is expected to be biased, length n; the biased ones are drawn hollow.
        title: title of the figure.

    Returns:
        A figure with one panel per block.

    Raises:
        ValueError: if there are no blocks, or lengths differ.

    Example:
        >>> estimators(["a", "b"], {"encoder": [1.0, 0.1]}, [False, True]).axes[0].get_title()
        'encoder'
    """
    panels = {name: as_array(values) for name, values in at_least_one(variances).items()}
    if any(values.shape != (len(names),) for values in [*panels.values(), np.array(biased)]):
        raise ValueError(f"every block takes {len(names)} variances, one for each name")
    figure, all_axes = new_figure(title, 5 + 4 * len(panels), 1.6 + 0.3 * len(names), columns=len(panels), sharey=True)
    rows = np.arange(len(names))[::-1]
    for axes, (block, values) in zip(all_axes, panels.items(), strict=True):
        positive = values > 1e-12
        least = values[positive].min(initial=1.0) / 10
        fill = np.where(np.array(biased), "none", "tab:blue")
        for here, marker, shown in ((positive, "o", values), (~positive, "<", np.full_like(values, least))):
            points = shown[here], rows[here]
            axes.scatter(*points, s=45, c=fill[here], marker=marker, edgecolors="tab:blue", zorder=3)
        axes.set(xscale="log", title=block, xlabel="variance of the gradient")
        axes.set_yticks(rows, names)
        axes.grid(axis="both", alpha=0.3)
    return figure


def trajectory(differences: ArrayLike, title: str = "") -> Figure:
    """Draw how far two runs have drifted apart, step by step, on a logarithmic vertical axis.

    Arguments:
        differences: the largest absolute difference between their parameters after each step, shape (steps,).
        title: title of the figure.

    Returns:
        A figure in which zeros, which have no logarithm, are drawn on a dotted line at the bottom.

    Raises:
        ValueError: for an array of another shape, or a negative difference.

    Example:
        >>> trajectory([0.0, 1e-8, 2e-8]).legends[0].get_texts()[-1].get_text()
        '1 of 3 steps without any difference, drawn at 1e-09'
    """
    values = as_array(differences)
    if values.ndim != 1 or not values.size or (values < 0).any():
        raise ValueError(f"differences must have shape (steps,) and be at least 0, not {values.shape}")
    positive = values[values > 0]
    floor = 10.0 ** (math.floor(math.log10(positive.min())) - 1) if positive.size else 1e-17
    figure, (axes,) = new_figure(title, 8, 3.8)
    steps, zero = np.arange(1, len(values) + 1), values == 0
    axes.plot(steps, np.where(zero, floor, values), color="tab:blue", marker=".", markersize=3, linewidth=1)
    if zero.any():
        label = f"{zero.sum()} of {len(values)} steps without any difference, drawn at {floor:.0e}"
        axes.plot(steps[zero], np.full(zero.sum(), floor), ".", color="tab:orange", markersize=3, label=label)
        axes.axhline(floor, color="tab:orange", linestyle=":", linewidth=1)
        figure.legend(loc="outside lower center", frameon=False, markerscale=3)
    axes.set(yscale="log", xlabel="step", ylabel="largest parameter difference")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return figure


def _histograms(axes: Axes, draws: list[np.ndarray], span: np.ndarray) -> None:
    edges = np.histogram_bin_edges(span, 60)
    for values, name, colour in zip(draws, ("pathwise", "score function"), ("tab:blue", "tab:orange"), strict=True):
        error, mean = math.sqrt(values.var(ddof=1) / len(values)), values.mean()
        label = f"{name}: mean {mean:.3g} ± {error:.1g}, variance {values.var(ddof=1):.3g}"
        share = np.histogram(values, edges)[0] / len(values)
        axes.stairs(share, edges, fill=True, color=colour, alpha=0.5, label=label)
        axes.axvline(mean, color=colour, linestyle="--", linewidth=1.5)
    axes.set(xlabel="gradient of a single draw, projected", xlim=(edges[0], edges[-1]))
