"""Figures of a training."""

import math
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pyro_vae.plots.figures import SMALL, new_figure

_PANELS = {
    "negative bound": ("train_loss", "test_loss", "test_loss_at_mean"),
    "reconstruction": ("train_reconstruction", "test_reconstruction"),
    "KL": ("train_kl", "test_kl"),
}
_LABELS = ("train", "test", "test at the posterior mean (no bound)")
_STYLES = (("tab:blue", "-"), ("tab:orange", "-"), ("tab:orange", ":"))


def curves(history: Sequence[Mapping[str, float]], title: str = "") -> Figure:
    r"""Draw what `pyro_vae.fit` measured: the negative bound, the reconstruction and the KL, epoch by epoch.

    Epoch 0, the state before training, can be far above all later epochs. The vertical axis therefore covers the later
    epochs, and values of epoch 0 outside of it are written below the panel.

    Arguments:
        history: one row per epoch with the keys of ``pyro_vae.training.COLUMNS``, in nats per datum; a column that is
            missing or NaN throughout is left out.
        title: title of the figure.

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
    figure, panels = new_figure(title, 11, 3.8, columns=3)
    epochs = _column(history, "epoch")
    for axes, (name, keys) in zip(panels, _PANELS.items(), strict=True):
        lines = [_column(history, key) for key in keys]
        for line, label, (colour, style) in zip(lines, _LABELS, _STYLES, strict=False):
            if np.isfinite(line).any():
                axes.plot(epochs, line, label=label, color=colour, linestyle=style, marker=".", markersize=4)
        axes.set(title=name, ylabel="nats per datum")
        axes.set_xlabel("epoch" + (_show_later_epochs(axes, lines) if epochs[0] == 0 else ""), fontsize=SMALL)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def _column(history: Sequence[Mapping[str, float]], key: str) -> np.ndarray:
    return np.array([row.get(key, math.nan) for row in history])


def _show_later_epochs(axes: Axes, lines: list[np.ndarray]) -> str:
    """Limit the vertical axis to the epochs after 0, and return as text the values of epoch 0 outside of it."""
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
