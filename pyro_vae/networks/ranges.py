"""Functions that keep the numbers of a network in range."""

import math
from numbers import Real

from torch import Tensor


def soft_clip(value: Tensor, bound: float = 10.0) -> Tensor:
    r"""Compress a tensor beyond a bound, and leave it as it is within.

    .. math:: f(v) = v \text{ for } |v| \le b, \qquad
              f(v) = \operatorname{sign}(v) \, (b + \log(1 + |v| - b)) \text{ beyond.}

    The log-variances of this package pass through it. The function is increasing and its slope is continuous and
    never zero, so that no variance is out of reach and no gradient dies, as it does with a clamp; yet an output of
    :math:`\pm 10^4` becomes :math:`\pm 19.2`, whose exponential float32 holds.

    Arguments:
        value: any tensor.
        bound: where the compression starts, above 0.

    Returns:
        A tensor of the same shape.

    Example:
        >>> import torch
        >>> soft_clip(torch.tensor([-1e4, 3.0, 1e4]))
        tensor([-19.2094,   3.0000,  19.2094])
    """
    excess = (value.abs() - bound).relu()
    return value.clamp(-bound, bound) + value.sign() * excess.log1p()


def positive(value: Tensor) -> Tensor:
    r"""Return a positive number for any output of a network: the exponential of `soft_clip`.

    .. math:: f(v) = e^v \text{ for } |v| \le 10, \text{ and polynomial beyond, from } 5 \cdot 10^{-9} \text{ to }
              2 \cdot 10^8 \text{ for } |v| \le 10^4

    Arguments:
        value: any tensor.

    Returns:
        A tensor of the same shape.

    Example:
        >>> import torch
        >>> positive(torch.tensor([0.0, 1.0]))
        tensor([1.0000, 2.7183])
    """
    return soft_clip(value).exp()


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
