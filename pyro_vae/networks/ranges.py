"""Functions that keep the numbers of a network in range."""

import math
from numbers import Real

from torch import Tensor

LOWEST = -30.0  # of the log-variances that a network reaches as fast as any other


def soft_clip(value: Tensor, bound: float = 10.0, low: float | None = None) -> Tensor:
    r"""Compress a tensor beyond two bounds, and leave it as it is between them.

    .. math:: f(v) = v \text{ for } l \le v \le b, \qquad f(v) = b + \log(1 + v - b) \text{ above,} \qquad
              f(v) = l - \log(1 + l - v) \text{ below.}

    What networks of this package give as logarithms passes through it. The function is increasing and its slope is
    continuous and never zero, so that no value is out of reach and no gradient dies, as it does with a clamp; yet an
    output of :math:`\pm 10^4` becomes :math:`\pm 19.2`, whose exponential float32 holds. Beyond a bound the slope is
    1 / (1 + excess): what lies far beyond is reached, but slowly. It is for networks alone: what a user asks for, and
    what is learned without a network, is not clipped.

    Arguments:
        value: any tensor.
        bound: the upper bound b, where the compression starts, above 0.
        low: the lower one l, below b; without it, -b.

    Returns:
        A tensor of the same shape.

    Example:
        >>> import torch
        >>> soft_clip(torch.tensor([-1e4, 3.0, 1e4]))
        tensor([-19.2094,   3.0000,  19.2094])
    """
    low = -bound if low is None else low
    return value.clamp(low, bound) + (value - bound).relu().log1p() - (low - value).relu().log1p()


def clip_log_variance(value: Tensor) -> Tensor:
    r"""Return a log-variance for any output of a network: `soft_clip` between -30 and 10.

    An encoder of data that a decoder of scale 0.0001 explains needs log-variances of -18 to -25, and reaches them as
    fast as it would without clipping. For outputs of :math:`\pm 10^4` the log-variance is from -39.2 to 19.2, and the
    deviation from :math:`3 \cdot 10^{-9}` to 15,000; in float32 the squares of both are held.

    Arguments:
        value: any tensor.

    Returns:
        A tensor of the same shape.

    Example:
        >>> import torch
        >>> clip_log_variance(torch.tensor([-1e4, -22.0, 1e4]))
        tensor([-39.2074, -22.0000,  19.2094])
    """
    return soft_clip(value, low=LOWEST)


def deviation(value: Tensor) -> Tensor:
    """Return a standard deviation, the output of a network being the logarithm of its square, by `clip_log_variance`.

    Arguments:
        value: any tensor.

    Returns:
        A tensor of the same shape.

    Example:
        >>> import torch
        >>> deviation(torch.tensor([0.0, 2.0]))
        tensor([1.0000, 2.7183])
    """
    return (clip_log_variance(value) / 2).exp()


def positive(value: Tensor, low: float = -10.0) -> Tensor:
    r"""Return a positive number for any output of a network: the exponential of `soft_clip`.

    .. math:: f(v) = e^v \text{ for } l \le v \le 10, \text{ and polynomial beyond, for } l = -10 \text{ from }
              5 \cdot 10^{-9} \text{ to } 2 \cdot 10^8 \text{ for } |v| \le 10^4

    Arguments:
        value: any tensor.
        low: the lower bound l.

    Returns:
        A tensor of the same shape.

    Example:
        >>> import torch
        >>> positive(torch.tensor([0.0, 1.0]))
        tensor([1.0000, 2.7183])
    """
    return soft_clip(value, low=low).exp()


def as_number(value: float, name: str) -> float:
    """Return a number as a float, or refuse what is none. NaN and the infinities are numbers.

    Arguments:
        value: the number, or a tensor of one.
        name: what the number is called in the error.

    Returns:
        The number.

    Raises:
        TypeError, ValueError: with the value received.

    Example:
        >>> as_number(2, "beta")
        2.0
    """
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, not {value!r}")
    try:
        return float(value)
    except OverflowError as error:
        raise ValueError(f"{name} must be a number of 64 bits, not {value!r}") from error


def above(value: float, least: float, name: str) -> float:
    """Return a number that is above a bound and finite, or refuse it.

    Arguments:
        value: the number.
        least: the bound.
        name: what the number is called in the error.

    Returns:
        The number, as a float.

    Raises:
        TypeError: where it is no number.
        ValueError: with the value received.

    Example:
        >>> above(2, 0, "the scale")
        2.0
    """
    number = as_number(value, name)
    if not least < number < math.inf:
        raise ValueError(f"{name} must be above {least:g} and finite, not {value!r}")
    return number


def held(value: float, least: float, name: str, low: float = 1e-30, high: float = 1e30) -> float:
    """Return a parameter of a distribution, or refuse one with which 32 bits cannot hold what is computed.

    Arguments:
        value: the parameter.
        least: what it must be above.
        name: what it is called in the error.
        low: the smallest one that is accepted.
        high: the largest one.

    Returns:
        The parameter, as a float.

    Raises:
        TypeError: where it is no number.
        ValueError: with the value received.

    Example:
        >>> held(2, 0, "the scale")
        2.0
    """
    number = above(value, least, name)
    if not low <= number <= high:
        raise ValueError(f"{name} must be from {low:.8g} to {high:g}, which 32 bits can hold, not {value!r}")
    return number
