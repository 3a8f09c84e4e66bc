"""Terms of log-densities with gamma functions, without the cancellation that differences of `lgamma` suffer from."""

import math

import torch
from torch import Tensor

HALF_LOG_2PI = math.log(2 * math.pi) / 2


def wide(value: Tensor) -> Tensor:
    """Return a tensor in 64 bits, if its device supports them."""
    return value if value.device.type == "mps" else value.double()


def stirling_series(value: Tensor) -> Tensor:
    r"""Return the remainder of Stirling's formula for the logarithm of a gamma function, for large arguments.

    .. math:: r(t) = \log \Gamma(t) - \left(t - \tfrac{1}{2}\right) \log t + t - \tfrac{1}{2} \log 2 \pi
              = \frac{1}{12 t} - \frac{1}{360 t^3} + \frac{1}{1260 t^5} - \dots

    Arguments:
        value: t, at least 50.

    Returns:
        A tensor of the same shape, with a relative error of at most :math:`10^{-13}`.

    Example:
        >>> stirling_series(torch.tensor(1e6)) * 12e6
        tensor(1.)

    Reference:
        Abramowitz and Stegun, 1964, Handbook of Mathematical Functions, equation 6.1.41.
    """
    inverse = 1 / value
    square = inverse**2
    return inverse * (1 / 12 - square * (1 / 360 - square * (1 / 1260 - square / 1680)))


def stirling_remainder(value: Tensor) -> Tensor:
    """Return the same remainder for any argument above 0: by the series from 50 on, by its definition below.

    Example:
        >>> stirling_remainder(torch.tensor(1.0).double())  # 1 - log(2 pi) / 2
        tensor(0.0811, dtype=torch.float64)
    """
    small = value.clamp(max=50.0)
    near = small.lgamma() - (small - 0.5) * small.log() + small - HALF_LOG_2PI
    return torch.where(value < 50, near, stirling_series(value.clamp(min=50.0)))


def log1p_less(value: Tensor, log1p: Tensor) -> Tensor:
    r"""Return :math:`\log(1 + u) - u`, given u and :math:`\log(1 + u)`, accurate even if these are nearly equal.

    Arguments:
        value: u, above -1.
        log1p: :math:`\log(1 + u)`, which is used only where the absolute value of u is at least 0.1.

    Returns:
        A tensor of the same shape.

    Example:
        >>> log1p_less(torch.tensor(1e-6), torch.tensor(1e-6)) * 2e12
        tensor(-1.0000)
    """
    # log(1 + u) = 2 artanh(s), a series in s whose first term is 2 s; and 2 s - u = -s u.
    s = value / (2 + value)
    square = s**2
    series = 1 / 3 + square * (1 / 5 + square * (1 / 7 + square * (1 / 9 + square / 11)))
    return torch.where(value.abs() < 0.1, 2 * s * square * series - s * value, log1p - value)
