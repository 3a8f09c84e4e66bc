"""Shape parameters of the distributions of positive numbers, proportions and simplices."""

import math

from torch import Tensor

CEILING = 1e3


def concentration(value: Tensor, floor: float) -> Tensor:
    r"""Return a concentration between a floor and about 1,000 for any output of a network.

    .. math:: f(v) = f_0 + \exp \left( v / \sqrt{1 + v^2 / c^2} \right), \qquad c = \log 1000

    The slope at 0 is that of an exponential, and no gradient is ever exactly 0. Why the range is bounded, seen with
    torch 2.13 in float32: a gamma variate of concentration 0.1 underflows once in 10,000 draws, one of 0.03 in 1 of 14;
    a proportion of concentrations below 0.5 rounds to 1, and its density is then that of another point; above 1,000
    terms of the log-density cancel, which then has an error of 0.01 at 10,000 and of 1 at a million.

    Arguments:
        value: any tensor.
        floor: the lower bound, above 0.

    Returns:
        A tensor of the same shape.

    Example:
        >>> import torch
        >>> concentration(torch.tensor([-1e4, 0.0, 1e4]), floor=0.1)
        tensor([1.0100e-01, 1.1000e+00, 1.0001e+03])
    """
    return floor + (value / (1 + (value / math.log(CEILING)) ** 2).sqrt()).exp()
