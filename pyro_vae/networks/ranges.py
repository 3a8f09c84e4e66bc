"""Functions that keep the numbers of a network in range."""

from torch import Tensor

LOWEST = -30.0  # log-variances below this are compressed, so that a network reaches them more slowly


def soft_clip(value: Tensor, bound: float = 10.0, low: float | None = None) -> Tensor:
    r"""Compress a tensor beyond two bounds, and leave it as it is between them.

    .. math:: f(v) = v \text{ for } l \le v \le b, \qquad f(v) = b + \log(1 + v - b) \text{ above,} \qquad
              f(v) = l - \log(1 + l - v) \text{ below.}

    Logarithms that networks of this package output pass through this function. It is increasing, and its slope is
    continuous and never zero, so that every value can be reached and no gradient vanishes, as it does with a clamp. Yet
    an output of :math:`\pm 10^4` becomes :math:`\pm 19.2`, whose exponential float32 holds. Beyond a bound the slope is
    1 / (1 + excess), so values far beyond it are reached slowly. The function is only for networks: values that a user
    sets, or that are learned without a network, are not clipped.

    Arguments:
        value: any tensor.
        bound: the upper bound b, where the compression starts, above 0.
        low: the lower bound l, below b; the default is -b.

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

    If a decoder of scale 0.0001 explains the data, their encoder needs log-variances of -18 to -25, and reaches them as
    fast as it would without clipping. For outputs of :math:`\pm 10^4` the log-variance is from -39.2 to 19.2, and the
    standard deviation from :math:`3 \cdot 10^{-9}` to 15,000; float32 holds the squares of both.

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
    """Return a standard deviation from a network's output, the logarithm of its square, by `clip_log_variance`.

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
