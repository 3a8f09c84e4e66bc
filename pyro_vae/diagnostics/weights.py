r"""What the weights of an importance sampler say: an estimate, its error, and whether both can be trusted.

Everything here takes the logarithms of the weights of K particles for each of B data, shape (K, B), in doubles:

.. math:: \log w_k = \log p(x, z_k) - \log q(z_k|x)
"""

import math
import warnings
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

FEWEST = 25  # weights for which a tail of five is left, from which its shape can be estimated
EQUAL = 1e-10  # log-weights that differ by less do so by rounding
WIDEST = 600.0  # nats that a tail may span: beyond it weights underflow beside the largest, and k is far above 0.7
RELIABLE = 0.7  # the largest Pareto k at which an estimate and its standard error can be trusted
APART = 8  # weights, the largest, that the jackknife of order 2 treats one by one
TERMS = 25  # of its series for the others: (2/9)^25 is below the rounding of double precision


class LogLikelihood(NamedTuple):
    r"""An estimate of :math:`\log p(x)` for each datum, and how far it can be trusted; each of shape (N,).

    ``estimate``, ``jackknife`` and ``standard_error`` are in nats. ``jackknife`` is the estimate less the first term of
    its bias; the error is that of the noise alone; both are NaN for a single sample. ``effective_sample_size`` is
    between 1 and the number of samples. ``pareto_k`` is the shape of the tail of the weights: above 0.7 neither the
    estimate nor its error can be trusted; it is minus infinity if the largest weights are equal, and NaN, unknown, if
    too few of them differ, or for fewer than 25 samples.
    """

    estimate: Tensor
    jackknife: Tensor
    standard_error: Tensor
    effective_sample_size: Tensor
    pareto_k: Tensor


def summary(log_weights: Tensor, order: int = 0) -> LogLikelihood:
    """Return the estimates that log-weights of shape (K, B) give, with their errors.

    Arguments:
        log_weights: the logarithms of the weights.
        order: the order of the jackknife, 0 to 2; 0 is the logarithm of the mean weight.

    Example:
        >>> summary(torch.tensor([[0.0], [math.log(3)]], dtype=torch.double)).estimate.exp()  # the mean of 1 and 3
        tensor([2.], dtype=torch.float64)
    """
    first = jackknifed(log_weights, 1) if len(log_weights) > 1 else torch.full_like(log_weights[0], math.nan)
    estimate = first if order == 1 else jackknifed(log_weights, order)
    spread = standard_error(log_weights), effective_sample_size(log_weights), pareto_k(log_weights)
    return LogLikelihood(estimate, first, *spread)


def jackknifed(log_weights: Tensor, order: int) -> Tensor:
    r"""Estimate the logarithm of the mean weight; the jackknife of order m removes the first m terms of its bias.

    .. math:: \sum_{j=0}^m (-1)^j \frac{(K-j)^m}{(m-j)!\, j!} \bar L_{K-j}

    where :math:`\bar L_{K-j}` is the mean of the plain estimate over all subsets of K - j weights. The bias of order m
    falls as :math:`K^{-(m+1)}`. It is no longer a lower bound.

    Arguments:
        log_weights: the logarithms of the weights, shape (K, B), with K above m.
        order: m, from 0 to 2.

    Returns:
        The estimates in nats, shape (B,).

    Raises:
        ValueError: for another order, or too few weights.

    Example:
        >>> log_weights = torch.tensor([[0.0], [math.log(3)]], dtype=torch.double)
        >>> jackknifed(log_weights, 1)  # 2 log 2 - (log 1 + log 3) / 2
        tensor([0.8370], dtype=torch.float64)

    Reference:
        Nowozin, 2018, Debiasing Evidence Approximations: On Importance-weighted Autoencoders and Jackknife Variational
        Inference, definitions 1 and 2.
    """
    count = len(log_weights)
    check_order(order, count)
    total = log_weights.logsumexp(0)
    shifted = log_weights - total  # so that the means below are small, as large factors multiply them
    means = [torch.zeros_like(total)]
    if order > 0:
        means.append(log_sums_without_one(shifted).mean(0))
    if order > 1:
        means.append(_mean_log_sum_without_two(shifted))
    debiased = torch.zeros_like(total)
    for j, mean in enumerate(means):
        factor = (-1) ** j * (count - j) ** order / (math.factorial(order - j) * math.factorial(j))
        debiased = debiased + factor * (mean - math.log(count - j))
    return total + debiased


def check_order(order: int, samples: int) -> None:
    """Refuse an order of the jackknife that there is not, or that the samples are too few for.

    Raises:
        ValueError: with both.

    Example:
        >>> check_order(2, samples=2)
        Traceback (most recent call last):
        ...
        ValueError: a jackknife of order 2 needs at least 3 samples, not 2
    """
    if isinstance(order, bool) or order not in (0, 1, 2):
        raise ValueError(f"the order of the jackknife is 0, 1 or 2, not {order!r}")
    if samples <= order:
        raise ValueError(f"a jackknife of order {order} needs at least {order + 1} samples, not {samples}")


def log_sums_without_one(log_weights: Tensor) -> Tensor:
    """Return for each weight the logarithm of the sum of all others, shape (K, ...).

    Example:
        >>> log_sums_without_one(torch.tensor([1.0, 2.0, 4.0]).log()).exp()
        tensor([6., 5., 3.])
    """
    total = log_weights.logsumexp(0)
    share = (log_weights - total).exp()
    others = total + torch.log1p(-share.clamp(max=0.5))
    largest = log_weights.argmax(0, keepdim=True)  # its share may be nearly 1, and the difference have no digits
    rest = log_weights.scatter(0, largest, -math.inf).logsumexp(0, keepdim=True)
    return others.scatter(0, largest, rest)


def _mean_log_sum_without_two(log_weights: Tensor) -> Tensor:
    r"""Return the mean of :math:`\log (1 - p_i - p_j)` over all pairs of K > 2 shares, given as logarithms.

    Pairs with one of the largest shares are computed one by one. The other shares are below 1/9, so that the logarithm
    has a series that converges quickly, and the sum over pairs follows from sums of powers of the shares.
    """
    count = len(log_weights)
    apart = min(APART, count)
    ordered = log_weights.sort(0, descending=True).values
    small = ordered[apart:].exp()
    pairs = torch.zeros_like(log_weights[0])  # the sum over ordered pairs
    for i in range(apart):
        others = torch.cat([ordered[:i], ordered[i + 1 :]])
        of_pair = log_sums_without_one(others)
        of_large, of_small = of_pair[: apart - 1], of_pair[apart - 1 :]
        pairs = pairs + of_large.sum(0) + 2 * of_small.sum(0)
    power, powers = torch.ones_like(small), [torch.full_like(pairs, len(small))]
    for n in range(1, TERMS):
        power = power * small
        powers.append(power.sum(0))
        both = sum(math.comb(n, a) * powers[a] * powers[n - a] for a in range(n + 1))  # of (p_i + p_j)^n, over all i, j
        pairs = pairs - (both - 2**n * powers[n]) / n  # but those with i = j
    return pairs / (count * (count - 1))


def standard_error(log_weights: Tensor) -> Tensor:
    r"""Return the standard error of the logarithm of the mean weight, by the jackknife.

    .. math:: \sqrt{\tfrac{K-1}{K} \sum_k (L_{-k} - \bar L_{-\cdot})^2}

    where :math:`L_{-k}` is the estimate without weight k.

    Arguments:
        log_weights: the logarithms of the weights, shape (K, B).

    Returns:
        The standard errors in nats, shape (B,); NaN for a single weight.

    Example:
        >>> standard_error(torch.tensor([[0.0], [math.log(3)]], dtype=torch.double))  # half of log 3
        tensor([0.5493], dtype=torch.float64)

    Reference:
        Efron, 1982, The Jackknife, the Bootstrap and Other Resampling Plans, equation 3.1.
    """
    count = len(log_weights)
    if count == 1:
        return torch.full_like(log_weights[0], math.nan)
    return log_sums_without_one(log_weights).std(0) * (count - 1) / math.sqrt(count)


def effective_sample_size(log_weights: Tensor) -> Tensor:
    r"""Return how many equal weights would have the same variance, :math:`(\sum_k w_k)^2 / \sum_k w_k^2`.

    Arguments:
        log_weights: the logarithms of the weights, shape (K, B).

    Returns:
        The effective sample sizes, between 1 and K, shape (B,).

    Example:
        >>> effective_sample_size(torch.tensor([[0.0], [math.log(3)]]))  # 4^2 / 10
        tensor([1.6000])

    Reference:
        Kong, Liu and Wong, 1994, Sequential Imputations and Bayesian Missing Data Problems, section 4.1.
    """
    return (2 * log_weights.logsumexp(0) - (2 * log_weights).logsumexp(0)).exp()


def pareto_k(log_weights: Tensor) -> Tensor:
    """Return the shape of the tail of the weights, by fitting a generalized Pareto distribution to the largest ones.

    The weights have about 1/k finite moments. Above 0.7 the estimate of their mean converges too slowly to be of use.

    Arguments:
        log_weights: the logarithms of the weights, shape (K, B).

    Returns:
        The shapes k, of shape (B,); minus infinity where the largest weights are equal, infinite where they span more
        than 600 nats; NaN where they are unknown, for fewer than 25 weights or where too few of the largest differ.

    Example:
        >>> uniform = torch.arange(1, 10_000, dtype=torch.double)[:, None] / 10_000
        >>> pareto_k(-0.5 * uniform.log()).round(decimals=1)  # moments below 1 / 0.5 = 2 are finite
        tensor([0.5000], dtype=torch.float64)

    Reference:
        Vehtari, Simpson, Gelman, Yao and Gabry, 2024, Pareto Smoothed Importance Sampling, section 3.
    """
    if len(log_weights) < FEWEST:
        return torch.full_like(log_weights[0], math.nan)
    with np.errstate(invalid="ignore"):  # of weights that are 0
        shapes = [_shape_of_tail(np.sort(of_datum)) for of_datum in log_weights.T.cpu().numpy()]
    return torch.tensor(shapes, dtype=log_weights.dtype, device=log_weights.device)


def _shape_of_tail(ordered: Any) -> float:
    """Return Pareto k of the log-weights of one datum in ascending order, where its fit has digits."""
    from arviz_stats.base import array_stats

    count = int(3 * math.sqrt(len(ordered))) if len(ordered) > 225 else len(ordered) // 5
    below, quartile, largest = ordered[[-count - 1, -count + int(count / 4 + 0.5) - 1, -1]]  # the fit divides by these
    if not largest - ordered[-count] > EQUAL:
        return -math.inf
    if not quartile - below > EQUAL:
        return math.nan
    return math.inf if largest - quartile > WIDEST else float(array_stats.psislw(-ordered)[1])  # it takes them negated


def warn_of_tails(shapes: Tensor) -> None:
    """Warn of data whose weights have so heavy a tail that their estimates cannot be trusted.

    Arguments:
        shapes: Pareto k of each datum.
    """
    heavy = int((shapes > RELIABLE).sum())
    if heavy:
        warnings.warn(
            f"the importance weights of {heavy} of {len(shapes)} data have a Pareto k over {RELIABLE}: their estimates"
            " may be far too low, and their standard errors too small; a better encoder or more samples may help",
            RuntimeWarning,
            stacklevel=4,
        )
