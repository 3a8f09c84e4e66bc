"""Figures: arrays in, a matplotlib ``Figure`` out. Nothing here trains, samples or shows a window.

Arrays are torch tensors, numpy arrays or nested lists. A datum of shape (h, w), (1, h, w) or (3, h, w) is a picture
with values in [0, 1], 0 black and 1 white; one of shape (d,), or of a single row or column, is drawn as a curve.
Figures follow the rcParams that are set, which stay as they are: pyplot is not imported. To see a figure, end a
notebook cell with it; to keep it, call ``figure.savefig("figure.pdf")``, or `png` for its bytes.
"""

import contextlib
import io
import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

with contextlib.chdir(os.path.dirname(__file__)):  # a matplotlibrc in the current folder may be a stranger's
    import matplotlib

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection, LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from pyro_vae.files import printable

_PANELS = {
    "negative bound": ("train_loss", "test_loss", "test_loss_at_mean"),
    "reconstruction": ("train_reconstruction", "test_reconstruction"),
    "KL": ("train_kl", "test_kl"),
}
_LABELS = ("train", "test", "test at the posterior mean (no bound)")
_STYLES = (("tab:blue", "-"), ("tab:orange", "-"), ("tab:orange", ":"))
_SMALL = 8  # points
_ACTIVE = 0.01  # nats per datum
KINDS = {".png": "agg", ".jpg": "agg", ".pdf": "pdf", ".svg": "svg"}  # of files, and what draws them


def curves(history: Sequence[Mapping[str, float]], title: str = "") -> Figure:
    r"""Draw what `pyro_vae.fit` measured: the negative bound, the reconstruction and the KL, epoch by epoch.

    Epoch 0, the state before training, can be far above all later ones. The heights therefore cover the later epochs,
    and what epoch 0 has outside of them is written below the panel.

    Arguments:
        history: one row per epoch with the keys of ``pyro_vae.training.COLUMNS``, in nats per datum; a column that is
            missing or NaN throughout is left out.
        title: of the figure.

    Returns:
        A figure of three panels.

    Raises:
        ValueError: for a history without rows.

    Example:
        >>> losses = [45.0, 30.0, 28.0]
        >>> rows = [{"epoch": epoch, "train_loss": loss} for epoch, loss in enumerate(losses)]
        >>> curves(rows).axes[0].get_xlabel()
        'epoch\n(outside, at epoch 0: train 45)'
    """
    if not len(history):
        raise ValueError("the history has no rows: hand over what fit returned")
    figure, panels = _figure(title, 11, 3.8, columns=3)
    epochs = _column(history, "epoch")
    for axes, (name, keys) in zip(panels, _PANELS.items(), strict=True):
        lines = [_column(history, key) for key in keys]
        for line, label, (colour, style) in zip(lines, _LABELS, _STYLES, strict=False):
            if np.isfinite(line).any():
                axes.plot(epochs, line, label=label, color=colour, linestyle=style, marker=".", markersize=4)
        axes.set(title=name, ylabel="nats per datum")
        axes.set_xlabel("epoch" + (_show_later_epochs(axes, lines) if epochs[0] == 0 else ""), fontsize=_SMALL)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def reconstructions(originals: ArrayLike, reconstructions: ArrayLike, title: str = "") -> Figure:
    r"""Draw data above their reconstructions.

    Arguments:
        originals: shape (n, \*shape), values in [0, 1] for pictures.
        reconstructions: of the same shape.
        title: of the figure.

    Returns:
        A figure of two rows.

    Raises:
        ValueError: where the two differ in shape, or are no data.

    Example:
        >>> len(reconstructions(np.zeros((5, 8, 8)), np.zeros((5, 8, 8))).axes)
        1
    """
    return _two_rows(originals, reconstructions, ("original", "reconstruction"), title)


def samples(images: ArrayLike, title: str = "") -> Figure:
    r"""Draw data in a near-square grid, row by row.

    Arguments:
        images: shape (n, \*shape), values in [0, 1] for pictures.
        title: of the figure.

    Returns:
        A figure of one grid.

    Raises:
        ValueError: for what are no data.

    Example:
        >>> samples(np.zeros((7, 8, 8))).axes[0].images[0].get_size()
        (24, 24)
    """
    return compare_samples({"": images}, title)


def compare_samples(panels: Mapping[str, ArrayLike], title: str = "") -> Figure:
    r"""Draw several near-square grids side by side, such as the samples of an autoencoder and of a VAE.

    Arguments:
        panels: from the title of a grid to its data, shape (n, \*shape), values in [0, 1] for pictures.
        title: of the figure.

    Returns:
        A figure of one grid per panel.

    Raises:
        ValueError: for no panels, or what are no data.

    Example:
        >>> figure = compare_samples({"autoencoder": np.zeros((9, 8, 8)), "VAE": np.zeros((9, 8, 8))})
        >>> [axes.get_title() for axes in figure.axes]
        ['autoencoder', 'VAE']
    """
    grids = {name: _near_square(_data(images)) for name, images in _at_least_one(panels).items()}
    aspect = max(_aspect(grid) * grid.shape[0] / grid.shape[1] for grid in grids.values())
    width = max(5.0, 4.5 * len(grids))
    figure, all_axes = _figure(title, width, 4.5 * min(aspect, 1.6) + 0.4, columns=len(grids))
    for axes, (name, grid) in zip(all_axes, grids.items(), strict=True):
        _tiles(axes, grid)
        axes.set_title(name)
    return figure


def interpolation(latent: ArrayLike, pixels: ArrayLike, title: str = "") -> Figure:
    r"""Draw a path between two data in latent space, decoded, above the one in pixel space.

    Arguments:
        latent: decoded points of the straight line between two codes, shape (steps, \*shape).
        pixels: points of the straight line between the two data, of the same shape.
        title: of the figure.

    Returns:
        A figure of two rows.

    Raises:
        ValueError: where the two differ in shape, or are no data.

    Example:
        >>> rows = interpolation(np.zeros((10, 8, 8)), np.zeros((10, 8, 8))).axes[0].get_yticklabels()
        >>> [row.get_text() for row in rows]
        ['in latent space', 'in pixel space']
    """
    return _two_rows(latent, pixels, ("in latent space", "in pixel space"), title)


def latent_map(
    panels: Mapping[str, tuple[ArrayLike, ArrayLike]],
    labels: ArrayLike | None = None,
    ellipses: bool = True,
    title: str = "",
    shared: bool = True,
) -> Figure:
    r"""Draw every datum's posterior as the ellipse of one standard deviation around its mean.

    .. math:: \{ z : (z - \mu_n)^T \Sigma_n^{-1} (z - \mu_n) = 1 \}

    An ellipse too small to be seen, such as that of an encoder to a point, is drawn as a dot.

    Arguments:
        panels: from the title of a panel, such as "epoch 15", to the posteriors' means, shape (n, 2), and covariances,
            shape (n, 2, 2), as `project` returns them.
        labels: one number per datum, shape (n,), the same for all panels; each gets a colour.
        ellipses: whether to draw the ellipses, else a dot at each mean.
        title: of the figure.
        shared: one scale for all panels, so that their bubbles can be compared; else each has its own.

    Returns:
        A figure of one panel each, side by side, with equal units on both axes.

    Raises:
        ValueError: for no panels, arrays whose shapes do not fit, or numbers that are not finite.

    Example:
        >>> figure = latent_map({"epoch 0": (np.zeros((3, 2)), [np.eye(2)] * 3)}, labels=[0, 1, 1])
        >>> [text.get_text() for text in figure.legends[0].get_texts()]
        ['0', '1']
    """
    maps = {name: _posteriors(*pair) for name, pair in _at_least_one(panels).items()}
    legend, colours = _colours(labels, {len(centres) for centres, _ in maps.values()})
    figure, all_axes = _figure(title, 4.6 * len(maps) + (0.7 if legend else 0), 4.8, columns=len(maps))
    for axes, (name, (centres, covariances)), (low, high) in zip(
        all_axes, maps.items(), _bounds(list(maps.values()), ellipses, shared), strict=True
    ):
        half = _square(axes, low, high)
        _bubbles(axes, centres, covariances * ellipses, colours, smallest=half / 200)
        axes.set_title(name)
    if legend:
        figure.legend(handles=legend, loc="outside right upper", frameon=False, ncols=1 + (len(legend) - 1) // 20)
    return figure


def project(mean: ArrayLike, scale: ArrayLike, method: str = "first", seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    r"""Map diagonal normal posteriors to two dimensions.

    .. math:: \mu_n \mapsto W \mu_n, \qquad
              \operatorname{diag}(\sigma_n^2) \mapsto W \operatorname{diag}(\sigma_n^2) W^T

    "first" takes the first two dimensions and "pca" the two directions in which the means vary most, about their
    average: linear maps both, so the covariances are exact. "tsne" is no linear map. There each covariance is a circle
    of the posterior's geometric-mean scale, in proportion: it is to the spread of the map what that scale is to the
    spread of the means, both as root-mean-square standard deviations over dimensions. It shows which posteriors are
    wide, not how they lie.

    Arguments:
        mean: the posteriors' means, shape (n, D).
        scale: their standard deviations, at least 0, of the same shape.
        method: "first", "pca" or "tsne"; the latter needs at least 4 means that differ, and seconds for thousands.
        seed: of t-SNE, from 0.

    Returns:
        Centres of shape (n, 2) and covariances of shape (n, 2, 2). What has only one dimension gets 0 for the second.

    Raises:
        ValueError: for another method, arrays whose shapes do not fit, a negative scale, and too little for t-SNE.

    Example:
        >>> centres, covariances = project([[1.0, 2.0, 3.0]], [[0.5, 1.0, 2.0]])
        >>> centres.tolist(), covariances.tolist()
        ([[1.0, 2.0]], [[[0.25, 0.0], [0.0, 1.0]]])

    Reference:
        Van der Maaten and Hinton, 2008, Visualizing Data using t-SNE.
    """
    means, scales = _array(mean), _array(scale)
    if means.ndim != 2 or means.shape != scales.shape or not means.size:
        raise ValueError(f"mean and scale must have one shape (n, D), not {means.shape} and {scales.shape}")
    if not (scales >= 0).all():
        raise ValueError(f"scale must be at least 0, not {scales.min()}")
    if method == "first":
        return _linear(means, scales, np.eye(2, means.shape[1]))
    if method == "pca":
        centred = means - means.mean(0)
        directions = np.linalg.eigh(centred.T @ centred).eigenvectors.T[::-1]  # exists for a single datum as well
        return _linear(centred, scales, np.eye(2, means.shape[1]) @ directions)
    if method == "tsne":
        return _tsne(means, scales, seed)
    raise ValueError(f"method is 'first', 'pca' or 'tsne', not {method!r}")


def decoded_grid(images: ArrayLike, extent: tuple[float, float, float, float], title: str = "") -> Figure:
    r"""Draw what an evenly spaced grid over a two-dimensional latent space decodes to, as one mosaic.

    Arguments:
        images: shape (rows, columns, \*shape), values in [0, 1] for pictures; row 0 belongs to the smallest z2 and is
            drawn at the bottom, column 0 belongs to the smallest z1.
        extent: (z1 min, z1 max, z2 min, z2 max), where the outermost images' centres lie.
        title: of the figure.

    Returns:
        A figure with ticks in units of z.

    Raises:
        ValueError: for what are no data, or an extent that does not ascend.

    Example:
        >>> figure = decoded_grid(np.zeros((4, 5, 8, 8)), (-2.0, 2.0, -1.5, 1.5))
        >>> [float(z) for z in figure.axes[0].get_xlim()]
        [-2.5, 2.5]

    Reference:
        Kingma and Welling, 2014, Auto-Encoding Variational Bayes, figure 4.
    """
    tiles = _data(images, leading=2)
    rows, columns = tiles.shape[:2]
    if not (extent[0] <= extent[1] and extent[2] <= extent[3]):
        raise ValueError(f"extent is (z1 min, z1 max, z2 min, z2 max), not {extent!r}")
    figure, (axes,) = _figure(title, 6.5, 6.5 * min(_aspect(tiles) * rows / columns, 2) + 0.4)
    _tiles(axes, tiles[::-1], (*_outer_edges(*extent[:2], columns), *_outer_edges(*extent[2:], rows)))
    axes.set(xlabel="$z_1$", ylabel="$z_2$")
    return figure


def posterior_cloud(
    original: ArrayLike, draws: ArrayLike, decoded: ArrayLike, background: ArrayLike | None = None, title: str = ""
) -> Figure:
    r"""Draw one datum, samples of its posterior among the codes of others, and what some of them decode to.

    Arguments:
        original: one datum, shape (\*shape), values in [0, 1] for a picture.
        draws: samples of its posterior in two dimensions, shape (n, 2).
        decoded: the decoded samples, shape (n, \*shape); the first 25 are drawn.
        background: the other codes in the same two dimensions, shape (m, 2).
        title: of the figure.

    Returns:
        A figure of three panels.

    Raises:
        ValueError: for what are no data, or no points in two dimensions.

    Example:
        >>> figure = posterior_cloud(np.zeros((8, 8)), np.zeros((100, 2)), np.zeros((100, 8, 8)))
        >>> [axes.get_title() for axes in figure.axes]
        ['the datum', 'draws of its posterior: 100', 'decoded draws: 25']
    """
    points, tiles = _points(draws, "draws"), _data(decoded)[:25]
    others = np.empty((0, 2)) if background is None else _points(background, "background")
    figure, (left, middle, right) = _figure(title, 11, 4.3, columns=3, width_ratios=(1, 2, 2))
    figure.set_layout_engine("constrained")  # "compressed" leaves much room between panels of different sizes
    _tiles(left, _data(original, leading=0)[None, None])
    _dots(middle, others, 3, "0.75", label="other codes" if len(others) else None)
    _dots(middle, points, 8, "tab:red", label="draws")
    everything = np.concatenate([points, others])
    _square(middle, everything.min(0), everything.max(0))
    _tiles(right, _near_square(tiles))
    figure.legend(loc="outside lower center", ncols=2, frameon=False, markerscale=2)
    left.set_title("the datum")
    middle.set_title(f"draws of its posterior: {len(points)}")
    right.set_title(f"decoded draws: {len(tiles)}")
    return figure


def kl_per_dimension(variance_part: ArrayLike, mean_part: ArrayLike, title: str = "") -> Figure:
    r"""Draw what each latent dimension adds to the KL, largest first.

    .. math:: \mathrm{KL}_d = \tfrac{1}{2} \mathbb{E}[\mu_d^2]
              + \tfrac{1}{2} \mathbb{E}[\sigma_d^2 - 1 - \log \sigma_d^2]

    Arguments:
        variance_part: the second term, shape (D,), in nats per datum.
        mean_part: the first term, shape (D,), in nats per datum.
        title: of the figure.

    Returns:
        A figure of stacked bars, which says how many dimensions have more than 0.01 nats. They are numbered from 1.

    Raises:
        ValueError: where the two are not of one shape (D,).

    Example:
        >>> kl_per_dimension([0.5, 0.0], [1.0, 0.002]).axes[0].get_title()
        'KL 1.502 nats per datum; 1 of 2 dimensions active (above 0.01 nats)'

    Reference:
        Kingma and Welling, 2014, Auto-Encoding Variational Bayes, appendix B.
    """
    variance, mean = _array(variance_part), _array(mean_part)
    if variance.ndim != 1 or variance.shape != mean.shape or not variance.size:
        raise ValueError(f"both parts must have one shape (D,), not {variance.shape} and {mean.shape}")
    total = variance + mean
    order = np.argsort(-total, kind="stable")
    figure, (axes,) = _figure(title, 8, 3.8)
    places = np.arange(len(total))
    axes.bar(places, mean[order], color="tab:blue", label=r"means: $\frac{1}{2} E[\mu^2]$")
    label = r"variances: $\frac{1}{2} E[\sigma^2 - 1 - \log \sigma^2]$"
    axes.bar(places, variance[order], bottom=mean[order], color="tab:orange", label=label)
    shown = places[:: math.ceil(len(places) / 25)]
    axes.set_xticks(shown, [str(index + 1) for index in order[shown]])
    axes.set(xlabel="latent dimension, by its KL", ylabel="nats per datum")
    active = f"{(total > _ACTIVE).sum()} of {len(total)} dimensions active (above {_ACTIVE} nats)"
    axes.set_title(f"KL {total.sum():.4g} nats per datum; {active}", fontsize="medium")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def gradients(pathwise: ArrayLike, score_function: ArrayLike, title: str = "") -> Figure:
    """Draw how two estimates of one gradient scatter: that of the reparameterization and the score-function one.

    The left panel has all draws, with a logarithmic height; the right one has the range of the narrower estimate.

    Arguments:
        pathwise: projections of single-draw gradients on one direction, shape (n,), n at least 2.
        score_function: those of the other estimate, shape (m,), m at least 2.
        title: of the figure.

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
    draws = [_array(pathwise), _array(score_function)]
    if any(values.ndim != 1 or len(values) < 2 for values in draws):
        raise ValueError(f"draws must have shape (n,), n at least 2, not {draws[0].shape} and {draws[1].shape}")
    variances = [values.var(ddof=1) for values in draws]
    figure, (whole, narrow) = _figure(title, 11, 4.6, columns=2)
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
        names: of the estimators, length n.
        variances: for each block's name the variances, shape (n,); those of 0 are arrows at the left edge.
        biased: whether an estimator is expected to be, length n: these are hollow.
        title: of the figure.

    Returns:
        A figure with one panel per block.

    Raises:
        ValueError: for no blocks, or lengths that differ.

    Example:
        >>> estimators(["a", "b"], {"encoder": [1.0, 0.1]}, [False, True]).axes[0].get_title()
        'encoder'
    """
    panels = {name: _array(values) for name, values in _at_least_one(variances).items()}
    if any(values.shape != (len(names),) for values in [*panels.values(), np.array(biased)]):
        raise ValueError(f"every block takes {len(names)} variances, one for each name")
    figure, all_axes = _figure(title, 5 + 4 * len(panels), 1.6 + 0.3 * len(names), columns=len(panels), sharey=True)
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
    """Draw how far two runs have drifted apart, step by step, with a logarithmic height.

    Arguments:
        differences: the largest absolute difference between their parameters after each step, shape (steps,).
        title: of the figure.

    Returns:
        A figure whose zeros, which a logarithm does not have, lie on a dotted floor.

    Raises:
        ValueError: for an array of another shape, or a negative difference.

    Example:
        >>> trajectory([0.0, 1e-8, 2e-8]).legends[0].get_texts()[-1].get_text()
        '1 of 3 steps without any difference, drawn at 1e-09'
    """
    values = _array(differences)
    if values.ndim != 1 or not values.size or (values < 0).any():
        raise ValueError(f"differences must have shape (steps,) and be at least 0, not {values.shape}")
    positive = values[values > 0]
    floor = 10.0 ** (math.floor(math.log10(positive.min())) - 1) if positive.size else 1e-17
    figure, (axes,) = _figure(title, 8, 3.8)
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


def png(figure: Figure, dpi: float = 120) -> bytes:
    """Return a figure as the bytes of a PNG file.

    Arguments:
        figure: any matplotlib figure.
        dpi: pixels per inch, above 0.

    Returns:
        The bytes.

    Example:
        >>> png(samples(np.zeros((4, 8, 8))))[1:4]
        b'PNG'
    """
    return as_file(figure, ".png", dpi)


def as_file(figure: Figure, suffix: str, dpi: float = 120) -> bytes:
    """Return a figure as the bytes of a file of one of `KINDS`.

    Arguments:
        figure: any matplotlib figure.
        suffix: ".png", ".jpg", ".pdf" or ".svg".
        dpi: pixels per inch, above 0.

    Returns:
        The bytes.

    Raises:
        ValueError: for another suffix.

    Example:
        >>> as_file(samples(np.zeros((4, 8, 8))), ".pdf")[:4]
        b'%PDF'
    """
    if suffix not in KINDS:
        raise ValueError(f"a figure is written as {', '.join(KINDS)}, not as {suffix!r}")
    buffer = io.BytesIO()
    figure.savefig(buffer, format=suffix[1:], dpi=dpi, backend=KINDS[suffix])
    return buffer.getvalue()


def _array(values: Any) -> np.ndarray:
    """Return numbers as a numpy array in double precision, also those of a tensor on a device or in a graph."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().double()
    return np.asarray(values, dtype=np.float64)


def _data(images: ArrayLike, leading: int = 1) -> np.ndarray:
    """Return data as (*leading, h, w), (*leading, h, w, 3), or (*leading, d) where they are a single row or column."""
    array = _array(images)
    shape = array.shape[leading:]
    if len(shape) not in (1, 2) and shape[:-2] not in ((1,), (3,)):
        before = ("", "n, ", "rows, columns, ")[leading]
        wanted = f"({before}*shape), *shape being (h, w), (1, h, w), (3, h, w) or (d,)"
        raise ValueError(f"data must have shape {wanted}, but have {array.shape}")
    if not array.size:
        raise ValueError(f"there is nothing to draw in data of shape {array.shape}")
    if len(shape) == 3 and shape[0] == 3:
        return np.moveaxis(array, leading, -1)
    if 1 in shape[-2:] and len(shape) > 1:  # such as sound of one channel
        return array.reshape(*array.shape[:leading], -1)
    return array.squeeze(leading) if len(shape) == 3 else array


def _points(values: ArrayLike, name: str) -> np.ndarray:
    array = _array(values)
    if array.ndim != 2 or array.shape[1] != 2 or not len(array):
        raise ValueError(f"{name} must have shape (n, 2), not {array.shape}")
    return array


def _at_least_one(panels: Mapping[str, Any]) -> Mapping[str, Any]:
    if not panels:
        raise ValueError("there are no panels to draw")
    return panels


def _column(history: Sequence[Mapping[str, float]], key: str) -> np.ndarray:
    return np.array([row.get(key, math.nan) for row in history])


def _figure(title: str, width: float, height: float, columns: int = 1, **options: Any) -> tuple[Figure, list[Axes]]:
    heading = textwrap.fill(printable(" ".join(title.split())), int(10 * width))
    figure = Figure((width, height + 0.35 * len(heading.splitlines())), layout="compressed")
    if heading:
        figure.suptitle(heading, parse_math=False)  # a name of data may hold a dollar sign
    panels = list(figure.subplots(1, columns, squeeze=False, **options)[0])
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(which="both", labelsize=_SMALL)
    return figure, panels


def _show_later_epochs(axes: Axes, lines: list[np.ndarray]) -> str:
    """Set the heights to those after epoch 0, and return in words what is then outside."""
    later = np.concatenate([line[1:] for line in lines])
    later = later[np.isfinite(later)]
    if not later.size:
        return ""
    margin = 0.05 * np.ptp(later) or 0.05 * abs(later[0]) or 1.0
    low, high = axes.set_ylim(later.min() - margin, later.max() + margin)
    outside = [
        f"{label.removesuffix(' (no bound)')} {line[0]:.4g}"
        for line, label in zip(lines, _LABELS, strict=False)
        if np.isfinite(line[0]) and not low <= line[0] <= high
    ]
    return "\n" + textwrap.fill(f"(outside, at epoch 0: {', '.join(outside)})", 50) if outside else ""


def _aspect(tiles: np.ndarray) -> float:
    """Height by width of one tile; that of a curve is a matter of taste."""
    return 0.75 if tiles.ndim == 3 else tiles.shape[2] / tiles.shape[3]


def _near_square(data: np.ndarray) -> np.ndarray:
    """Return data in rows and columns, the last row filled up with NaN."""
    columns = math.ceil(math.sqrt(len(data)))
    rows = math.ceil(len(data) / columns)
    empty = np.full((rows * columns - len(data), *data.shape[1:]), np.nan)
    return np.concatenate([data, empty]).reshape(rows, columns, *data.shape[1:])


def _two_rows(upper: ArrayLike, lower: ArrayLike, names: tuple[str, str], title: str) -> Figure:
    above, below = _data(upper), _data(lower)
    if above.shape != below.shape:
        raise ValueError(f"both rows must have one shape, not {above.shape} and {below.shape}")
    tiles = np.stack([above, below])
    cell = min(1.0, 15 / len(above))
    figure, (axes,) = _figure(title, max(4.5, cell * len(above) + 1.2), 2 * cell * min(_aspect(tiles), 4) + 0.2)
    _tiles(axes, tiles)
    axes.set_yticks([0.5, 1.5], names, fontsize=10)
    axes.tick_params(length=0)
    return figure


def _tiles(axes: Axes, tiles: np.ndarray, box: tuple[float, float, float, float] | None = None) -> None:
    """Draw data of shape (rows, columns, ...) from top to bottom, in a box (left, right, bottom, top) of the axes."""
    rows, columns = tiles.shape[:2]
    left, right, bottom, top = box or (0, columns, rows, 0)
    width, height = (right - left) / columns, (top - bottom) / rows
    if tiles.ndim == 3:
        axes.add_collection(_curves_in_cells(tiles, left, top, width, height))
    else:
        mosaic = np.concatenate(np.concatenate(tiles, axis=1), axis=1)
        mosaic = np.clip(np.nan_to_num(mosaic, nan=1.0), 0, 1)
        image = axes.imshow(mosaic, cmap="gray", vmin=0, vmax=1, interpolation="nearest", origin="upper")
        image.set_extent((left, right, bottom, top))
    axes.set(xlim=(left, right), ylim=(bottom, top), aspect=_aspect(tiles) * abs(width / height))
    axes.set_anchor("N")
    axes.grid(False)
    if box is None:
        axes.spines[:].set_visible(False)
        axes.set(xticks=[], yticks=[])
        if tiles.ndim == 3:
            axes.set_xlabel(f"heights from {np.nanmin(tiles):.3g} to {np.nanmax(tiles):.3g}", fontsize=_SMALL)
    colour = "0.8" if tiles.ndim == 3 else axes.figure.get_facecolor()
    between = {"colors": colour, "linewidths": min(1.0, 10 / columns)}
    axes.vlines(left + width * np.arange(1, columns), bottom, top, **between)
    axes.hlines(bottom + height * np.arange(1, rows), left, right, **between)


def _curves_in_cells(tiles: np.ndarray, left: float, top: float, width: float, height: float) -> LineCollection:
    """Return curves of shape (rows, columns, d) as lines, all on one scale, each in the middle of its cell."""
    tiles = np.repeat(tiles, 2, axis=-1) if tiles.shape[-1] == 1 else tiles
    low, high = np.nanmin(tiles), np.nanmax(tiles)
    up = (tiles - low) / (high - low) if high > low else np.full_like(tiles, 0.5)
    row, column = np.indices(tiles.shape[:2])[..., None]
    x = left + width * (column + np.linspace(0.08, 0.92, tiles.shape[-1]))
    y = top - height * (row + 0.9 - 0.8 * up)
    return LineCollection([*np.stack([x, y], -1).reshape(-1, tiles.shape[-1], 2)], colors="tab:blue", linewidths=1)


def _outer_edges(low: float, high: float, count: int) -> tuple[float, float]:
    """Return where the outer tiles end, if their centres lie at low and high."""
    half = (high - low) / max(count - 1, 1) / 2 or 0.5
    return low - half, high + half


def _posteriors(centres: ArrayLike, covariances: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    points, spreads = _points(centres, "centres"), _array(covariances)
    if spreads.shape != (len(points), 2, 2):
        raise ValueError(f"centres and covariances must be (n, 2) and (n, 2, 2), not {points.shape}, {spreads.shape}")
    if not (np.isfinite(points).all() and np.isfinite(spreads).all()):
        raise ValueError("centres and covariances must be finite")
    return points, spreads


def _colours(labels: ArrayLike | None, counts: set[int]) -> tuple[list[Line2D], np.ndarray]:
    """Return a legend and a colour per datum, or one colour for all; digits keep theirs where some are missing."""
    if labels is None:
        return [], np.array(matplotlib.colors.to_rgba_array("tab:blue"))
    values = _array(labels)
    if values.ndim != 1 or counts != {len(values)}:
        raise ValueError(f"labels must have shape (n,) with n one of {sorted(counts)}, not {values.shape}")
    classes, index = np.unique(values, return_inverse=True)
    if np.isin(classes, range(10)).all():
        palette = matplotlib.colormaps["tab10"](classes.astype(int))
    else:
        palette = matplotlib.colormaps["turbo"](np.linspace(0.05, 0.95, len(classes)))
    legend = [
        Line2D([], [], marker="o", linestyle="", color=colour, label=f"{value:g}")
        for value, colour in zip(classes, palette, strict=True)
    ]
    return legend, palette[index]


def _bounds(maps: list[tuple[np.ndarray, np.ndarray]], ellipses: bool, shared: bool) -> np.ndarray:
    """Return the lower and upper corner of each panel's ellipses, shape (panels, 2, 2)."""
    reach = [np.sqrt(covariances.diagonal(axis1=1, axis2=2)) * ellipses for _, covariances in maps]
    bounds = np.array([((c - r).min(0), (c + r).max(0)) for (c, _), r in zip(maps, reach, strict=True)])
    if shared:
        bounds[:] = bounds[:, 0].min(0), bounds[:, 1].max(0)
    return bounds


def _square(axes: Axes, low: np.ndarray, high: np.ndarray) -> float:
    """Show a square around two corners, and return half its side."""
    half = float(0.53 * max(high - low)) or 1.0
    middle = (low + high) / 2
    axes.set(xlim=middle[0] + [-half, half], ylim=middle[1] + [-half, half], aspect="equal")
    return half


def _bubbles(axes: Axes, centres: np.ndarray, covariances: np.ndarray, colours: np.ndarray, smallest: float) -> None:
    values, vectors = np.linalg.eigh(covariances)
    radii = np.sqrt(values.clip(0))
    angles = np.degrees(np.arctan2(vectors[:, 1, 1], vectors[:, 0, 1]))  # of the longer axis
    colours = np.broadcast_to(colours, (len(centres), 4))
    bubbles = EllipseCollection(
        2 * radii[:, 1], 2 * radii[:, 0], angles, units="xy", offsets=centres, offset_transform=axes.transData
    )
    within = np.trace(covariances.mean(0))
    layers = len(centres) * within / (within + centres.var(0).sum() or 1.0)  # that lie on each other, roughly
    opacity = max(0.03, 0.3 / math.sqrt(max(1.0, layers / 20)))
    bubbles.set(facecolor=colours * [1, 1, 1, opacity], edgecolor=colours * [1, 1, 1, 2 * opacity], linewidth=0.5)
    axes.add_collection(bubbles)
    tiny = radii[:, 1] < smallest
    _dots(axes, centres[tiny], 8, colours[tiny])


def _dots(axes: Axes, points: np.ndarray, size: float, colour: Any, label: str | None = None) -> None:
    axes.scatter(points[:, 0], points[:, 1], s=size, c=colour, alpha=0.7, linewidths=0, label=label)


def _linear(means: np.ndarray, scales: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return means @ weight.T, np.einsum("id,nd,jd->nij", weight, scales**2, weight)


def _tsne(means: np.ndarray, scales: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.manifold import TSNE

    spread = math.sqrt(means.var(0).mean())
    if len(means) < 4 or spread == 0:
        raise ValueError(f"t-SNE needs at least 4 means that differ, not these {len(means)}; take 'first' or 'pca'")
    start = "pca" if means.shape[1] > 1 else "random"
    perplexity = min(30, (len(means) - 1) / 3)
    centres = TSNE(perplexity=perplexity, init=start, random_state=seed).fit_transform(means).astype(np.float64)
    with np.errstate(divide="ignore"):
        typical = np.exp(np.log(scales).mean(1))
    radii = typical / spread * math.sqrt(centres.var(0).mean())
    return centres, radii[:, None, None] ** 2 * np.eye(2)


def _histograms(axes: Axes, draws: list[np.ndarray], span: np.ndarray) -> None:
    edges = np.histogram_bin_edges(span, 60)
    for values, name, colour in zip(draws, ("pathwise", "score function"), ("tab:blue", "tab:orange"), strict=True):
        error, mean = math.sqrt(values.var(ddof=1) / len(values)), values.mean()
        label = f"{name}: mean {mean:.3g} ± {error:.1g}, variance {values.var(ddof=1):.3g}"
        share = np.histogram(values, edges)[0] / len(values)
        axes.stairs(share, edges, fill=True, color=colour, alpha=0.5, label=label)
        axes.axvline(mean, color=colour, linestyle="--", linewidth=1.5)
    axes.set(xlabel="gradient of a single draw, projected", xlim=(edges[0], edges[-1]))
