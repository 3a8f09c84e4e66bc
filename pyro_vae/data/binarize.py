"""Transforms that make grey values binary."""

from collections.abc import Callable

import torch
from torch import Tensor


def threshold(x: Tensor) -> Tensor:
    """Binarize: 1 where a value in [0, 1] is at least one half, 0 below; NaN, a missing entry, stays NaN.

    Raises:
        ValueError: for values outside [0, 1].

    Example:
        >>> threshold(torch.tensor([0.0, 0.5, 1.0]))
        tensor([0., 1., 1.])
    """
    if ((x < 0) | (x > 1)).any():
        raise ValueError(f"the threshold takes {_outside(x)}")
    return torch.where(x.isnan(), x, (x >= 0.5).to(x.dtype))


def _outside(x: Tensor) -> str:
    known = x[~x.isnan()]
    bounds = f"{known.min().item():.6g} to {known.max().item():.6g}"
    return f"values in [0, 1], but the data hold {bounds}: scale them (8-bit pixels: x / 255, or --scale 255)"


def dynamic(x: Tensor) -> Tensor:
    """Binarize at random: each value in [0, 1] is the probability of a 1; NaN, a missing entry, stays NaN.

    As a ``transform`` of `fit` it draws new values for every batch of every epoch, from the seed of `fit`.

    Raises:
        ValueError: for values outside [0, 1].

    Example:
        >>> dynamic(torch.tensor([0.0, 1.0]))
        tensor([0., 1.])

    Reference:
        Salakhutdinov and Murray, 2008, On the Quantitative Analysis of Deep Belief Networks, section 6.
    """
    try:
        return torch.where(x.isnan(), x, torch.bernoulli(x.nan_to_num(0.0)))
    except RuntimeError as error:
        raise ValueError(f"dynamic binarization takes {_outside(x)}") from error


BINARIZE: dict[str, Callable[[Tensor], Tensor] | None] = {"none": None, "threshold": threshold, "dynamic": dynamic}
