"""Figures of the latent space."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike

from pyro_vae.files import printable
from pyro_vae.plots.figures import as_array, as_points, at_least_one, new_figure
from pyro_vae.plots.tiles import as_pictures, draw_tiles, near_square

_ACTIVE = 0.01  # nats per datum
_MOST_CLASSES = 40  # the most classes that a legend names one by one


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
        panels: for the title of each panel, such as "epoch 15", the posteriors' means, shape (n, 2), and covariances,
            shape (n, 2, 2), as `project` returns them.
        labels: one number or text per datum, shape (n,), the same for all panels; each gets a colour. More than 40
            different numbers are drawn as measurements, coloured from the least to the largest, with NaN in grey; of
            more than 40 texts, coloured in alphabetical order, the legend names six.
        ellipses: whether to draw the ellipses; otherwise a dot is drawn at each mean.
        title: title of the figure.
        shared: use one scale for all panels, so that their ellipses can be compared; otherwise each has its own.

    Returns:
        A figure with the panels side by side, and with equal units on both axes.

    Raises:
        ValueError: if there are no panels; for arrays whose shapes do not fit, or numbers that are not finite.

    Example:
        >>> figure = latent_map({"epoch 0": (np.zeros((3, 2)), [np.eye(2)] * 3)}, labels=[0, 1, 1])
        >>> [text.get_text() for text in figure.legends[0].get_texts()]
        ['0', '1']
    """
    maps = {name: _posteriors(*pair) for name, pair in at_least_one(panels).items()}
    legend, colours = _colours(labels, {len(centres) for centres, _ in maps.values()})
    names = [_short(printable(str(handle.get_label()))) for handle in legend]
    columns = math.ceil(len(names) / 20)
    room = columns * (0.61 + 0.09 * max(map(len, names), default=0))
    figure, all_axes = new_figure(title, 4.6 * len(maps) + room, 4.8, columns=len(maps))
    for axes, (name, (centres, covariances)), (low, high) in zip(
        all_axes, maps.items(), _bounds(list(maps.values()), ellipses, shared), strict=True
    ):
        half = _square(axes, low, high)
        _bubbles(axes, centres, covariances * ellipses, colours, smallest=half / 200)
        axes.set_title(name)
    if legend:
        place = figure.legend(legend, ["x"] * len(names), loc="outside right upper", frameon=False, ncols=columns)
        for text, name in zip(place.get_texts(), names, strict=True):
            text.set(text=name, parse_math=False)  # a label may begin with _, and may hold a dollar sign
    return figure


def _short(text: str) -> str:
    return text if len(text) <= 30 else f"{text[:14]}…{text[-15:]}"


def project(mean: ArrayLike, scale: ArrayLike, method: str = "first", seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    r"""Project the means and covariances of posteriors to two dimensions.

    .. math:: \mu_n \mapsto W \mu_n, \qquad L_n L_n^T \mapsto W L_n L_n^T W^T, \qquad
              L_n = \operatorname{diag}(\sigma_n) \text{ of independent dimensions}

    "first" takes the first two dimensions, and "pca" the two directions in which the means vary most, about their
    average. Both are linear maps, so the covariances are exact. "tsne" is not a linear map, so each covariance becomes
    a circle, whose radius relative to the spread of the map is the posterior's geometric-mean scale relative to the
    spread of the means. Spreads are root-mean-square standard deviations over dimensions. The circles show which
    posteriors are wide, but not their orientation.

    Arguments:
        mean: the posteriors' means, shape (n, D).
        scale: their standard deviations, at least 0, of the same shape; for correlated dimensions, a factor L of each
            covariance, shape (n, D, K), such as its Cholesky factor.
        method: "first", "pca" or "tsne"; t-SNE needs at least 4 means that differ, and takes seconds for thousands.
        seed: random seed of t-SNE, at least 0.

    Returns:
        Centres of shape (n, 2) and covariances of shape (n, 2, 2). If D is 1, the second dimension is 0.

    Raises:
        ValueError: for another method, arrays whose shapes do not fit, a negative scale, and too few means for t-SNE.

    Example:
        >>> centres, covariances = project([[1.0, 2.0, 3.0]], [[0.5, 1.0, 2.0]])
        >>> centres.tolist(), covariances.tolist()
        ([[1.0, 2.0]], [[[0.25, 0.0], [0.0, 1.0]]])

    Reference:
        Van der Maaten and Hinton, 2008, Visualizing Data using t-SNE.
    """
    means, scales = as_array(mean), as_array(scale)
    if means.ndim != 2 or scales.ndim not in (2, 3) or means.shape != scales.shape[:2] or not scales.size:
        shapes = f"{means.shape} and {scales.shape}"
        raise ValueError(f"mean and scale must have one shape (n, D), or (n, D) and (n, D, K), not {shapes}")
    if scales.ndim == 2 and not (scales >= 0).all():
        raise ValueError(f"scale must be at least 0, not {scales.min()}")
    if method == "first":
        return _linear(means, scales, np.eye(2, means.shape[1]))
    if method == "pca":
        centred = means - means.mean(0)
        directions = np.linalg.eigh(centred.T @ centred).eigenvectors.T[::-1]  # also works for a single datum
        return _linear(centred, scales, np.eye(2, means.shape[1]) @ directions)
    if method == "tsne":
        return _tsne(means, scales, seed)
    raise ValueError(f"method is 'first', 'pca' or 'tsne', not {method!r}")


def posterior_cloud(
    original: ArrayLike, draws: ArrayLike, decoded: ArrayLike, background: ArrayLike | None = None, title: str = ""
) -> Figure:
    r"""Draw one datum, samples of its posterior among the codes of other data, and some of these samples decoded.

    Arguments:
        original: one datum, shape (\*shape), values in [0, 1] for a picture.
        draws: samples of its posterior in two dimensions, shape (n, 2).
        decoded: the decoded samples, shape (n, \*shape); the first 25 are drawn.
        background: the codes of other data in the same two dimensions, shape (m, 2).
        title: title of the figure.

    Returns:
        A figure of three panels.

    Raises:
        ValueError: for arrays that do not have the shape of data, or of points in two dimensions.

    Example:
        >>> figure = posterior_cloud(np.zeros((8, 8)), np.zeros((100, 2)), np.zeros((100, 8, 8)))
        >>> [axes.get_title() for axes in figure.axes]
        ['the datum', 'draws of its posterior: 100', 'decoded draws: 25']
    """
    points, tiles = as_points(draws, "draws"), as_pictures(decoded)[:25]
    others = np.empty((0, 2)) if background is None else as_points(background, "background")
    figure, (left, middle, right) = new_figure(title, 11, 4.3, columns=3, width_ratios=(1, 2, 2))
    figure.set_layout_engine("constrained")  # "compressed" leaves much room between panels of different sizes
    draw_tiles(left, as_pictures(original, leading=0)[None, None])
    _dots(middle, others, 3, "0.75", label="other codes" if len(others) else None)
    _dots(middle, points, 8, "tab:red", label="draws")
    everything = np.concatenate([points, others])
    _square(middle, everything.min(0), everything.max(0))
    draw_tiles(right, near_square(tiles))
    figure.legend(loc="outside lower center", ncols=2, frameon=False, markerscale=2)
    left.set_title("the datum")
    middle.set_title(f"draws of its posterior: {len(points)}")
    right.set_title(f"decoded draws: {len(tiles)}")
    return figure


def kl_per_dimension(variance_part: ArrayLike, mean_part: ArrayLike, title: str = "") -> Figure:
    r"""Draw what each latent dimension contributes to the KL, largest first.

    .. math:: \mathrm{KL}_d = \tfrac{1}{2} \mathbb{E}[\mu_d^2]
              + \tfrac{1}{2} \mathbb{E}[\sigma_d^2 - 1 - \log \sigma_d^2]

    Arguments:
        variance_part: the second term, shape (D,), in nats per datum.
        mean_part: the first term, shape (D,), in nats per datum.
        title: title of the figure.

    Returns:
        A figure of stacked bars, which says how many dimensions have more than 0.01 nats. Dimensions are numbered
        from 1.

    Raises:
        ValueError: if the two do not have the same shape (D,).

    Example:
        >>> kl_per_dimension([0.5, 0.0], [1.0, 0.002]).axes[0].get_title()
        'KL 1.502 nats per datum; 1 of 2 dimensions active (above 0.01 nats)'

    Reference:
        Kingma and Welling, 2014, Auto-Encoding Variational Bayes, appendix B.
    """
    variance, mean = as_array(variance_part), as_array(mean_part)
    if variance.ndim != 1 or variance.shape != mean.shape or not variance.size:
        raise ValueError(f"both parts must have one shape (D,), not {variance.shape} and {mean.shape}")
    total = variance + mean
    order = np.argsort(-total, kind="stable")
    figure, (axes,) = new_figure(title, 8, 3.8)
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


def _posteriors(centres: ArrayLike, covariances: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    points, spreads = as_points(centres, "centres"), as_array(covariances)
    if spreads.shape != (len(points), 2, 2):
        raise ValueError(f"centres and covariances must be (n, 2) and (n, 2, 2), not {points.shape}, {spreads.shape}")
    if not (np.isfinite(points).all() and np.isfinite(spreads).all()):
        raise ValueError("centres and covariances must be finite")
    return points, spreads


def _colours(labels: ArrayLike | None, counts: set[int]) -> tuple[list[Line2D], np.ndarray]:
    """Return a legend and a colour per datum, or one colour for all; each digit has its own even if some are absent."""
    if labels is None:
        return [], np.array(matplotlib.colors.to_rgba_array("tab:blue"))
    words = None
    if not hasattr(labels, "detach") and np.asarray(labels).dtype.kind in "OSU":
        words, labels = np.unique(np.asarray(labels).astype(str), return_inverse=True)
    values = as_array(labels)
    if values.ndim != 1 or counts != {len(values)}:
        raise ValueError(f"labels must have shape (n,) with n one of {sorted(counts)}, not {values.shape}")
    classes, index = np.unique(values, return_inverse=True)
    turbo = matplotlib.colormaps["turbo"].with_extremes(bad="0.7")
    if len(classes) > _MOST_CLASSES:
        ends = np.nanmin(values), np.nanmax(values)
        places = np.linspace(*ends, 6) if words is None else np.linspace(*ends, 6).round().astype(int)
        six, colours = (turbo(np.interp(each, ends, (0.05, 0.95))) for each in (places, values))
        return _legend(_told_apart(places, 4) if words is None else words[places], six), colours
    if np.isin(classes, range(10)).all():
        palette = matplotlib.colormaps["tab10"](classes.astype(int))
    else:
        palette = turbo(np.linspace(0.05, 0.95, len(classes)))
    return _legend(_told_apart(classes, 6) if words is None else words, palette), palette[index]


def _legend(texts: Iterable[str], palette: np.ndarray) -> list[Line2D]:
    return [
        Line2D([], [], marker="o", linestyle="", color=colour, label=text)
        for text, colour in zip(texts, palette, strict=True)
    ]


def _told_apart(values: np.ndarray, digits: int) -> list[str]:
    """Return different numbers as different texts, with at least so many digits; whole numbers have all of theirs."""
    if (np.abs(values) < 2**53).all() and (values == values.round()).all():
        return [f"{value:.0f}" for value in values]
    texts = [f"{value:.{digits}g}" for value in values]
    return texts if len({*texts}) == len(values) or digits == 17 else _told_apart(values, digits + 1)


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
    layers = len(centres) * within / (within + centres.var(0).sum() or 1.0)  # of ellipses that overlap, roughly
    opacity = max(0.03, 0.3 / math.sqrt(max(1.0, layers / 20)))
    bubbles.set(facecolor=colours * [1, 1, 1, opacity], edgecolor=colours * [1, 1, 1, 2 * opacity], linewidth=0.5)
    axes.add_collection(bubbles)
    tiny = radii[:, 1] < smallest
    _dots(axes, centres[tiny], 8, colours[tiny])


def _dots(axes: Axes, points: np.ndarray, size: float, colour: Any, label: str | None = None) -> None:
    axes.scatter(points[:, 0], points[:, 1], s=size, c=colour, alpha=0.7, linewidths=0, label=label)


def _linear(means: np.ndarray, scales: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    moved = weight @ scales if scales.ndim == 3 else weight * scales[:, None]
    return means @ weight.T, moved @ moved.swapaxes(1, 2)


def _tsne(means: np.ndarray, scales: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.manifold import TSNE

    spread = math.sqrt(means.var(0).mean())
    if len(means) < 4 or spread == 0:
        raise ValueError(f"t-SNE needs at least 4 means that differ, not these {len(means)}; take 'first' or 'pca'")
    start = "pca" if means.shape[1] > 1 else "random"
    perplexity = min(30, (len(means) - 1) / 3)
    centres = TSNE(perplexity=perplexity, init=start, random_state=seed).fit_transform(means).astype(np.float64)
    with np.errstate(divide="ignore"):
        typical = np.exp(np.log(np.linalg.norm(scales.reshape(*means.shape, -1), axis=2)).mean(1))
    radii = typical / spread * math.sqrt(centres.var(0).mean())
    return centres, radii[:, None, None] ** 2 * np.eye(2)
