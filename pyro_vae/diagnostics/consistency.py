"""Whether two trainings have found the same codes."""

from typing import Any, NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from pyro_vae.diagnostics.vectors import as_vectors, check_together, halves, varies

FOR_EACH = 4  # data for each dimension, at least


class Consistency(NamedTuple):
    """How well the codes of one training agree with those of another, on data that no map was fitted to.

    Attributes:
        r_squared: the share of each dimension's variance that a linear map from the other codes predicts, at most 1,
            shape (D,); NaN for a dimension that is constant.
        mean_r_squared: its mean over the dimensions that are not constant.
        mcc: the mean correlation coefficient: between -1 and 1, and 1 if each dimension is one of the others, apart
            from its sign and scale.
    """

    r_squared: Tensor
    mean_r_squared: float
    mcc: float


def consistency(codes: Any, others: Any, *, seed: int = 0) -> Consistency:
    r"""Compare the codes that two trainings give to the same data.

    .. math:: R^2_d = 1 - \frac{\sum_n (w_{nd} - (A z_n + b)_d)^2}{\sum_n (w_{nd} - \bar w_d)^2}, \qquad
              \mathrm{MCC} = \frac1D \sum_d s_d \, \mathrm{corr}(z_d, w_{\pi(d)})

    The linear map (least squares), the assignment :math:`\pi` (that of the largest sum of absolute correlations) and
    its signs :math:`s` are found on a random half of the data, and both measures on the other half. So codes that have
    nothing in common give 0 within the noise of the data, about :math:`-2(D + 2)/N` for :math:`R^2`, and
    :math:`\pm \sqrt{2/(ND)}` for the MCC.

    Prior and likelihood often leave the codes free to rotate: then :math:`R^2` is 1 and the MCC is not. Dimensions that
    have collapsed cannot be predicted, and lower the mean: leave them out, ``codes[:, active]``.

    Arguments:
        codes: the codes z that predict, such as `pyro_vae.diagnostics.encoding.code_means`, shape (N, D).
        others: the codes w of the same data that are predicted, shape (N, E). If E is not D, the MCC is the mean over
            the smaller number of pairs.
        seed: random seed of the halves.

    Returns:
        The measures of each dimension, and their means.

    Raises:
        TypeError, ValueError: for values that are not finite numbers, different numbers of data, fewer than 4 data for
            each dimension and one more, and codes that are the same for nearly all data.

    Example:
        >>> codes = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0))
        >>> turned = codes @ torch.tensor([[0.8, -0.6], [0.6, 0.8]])
        >>> found = consistency(codes, turned)
        >>> round(found.mean_r_squared, 6), round(found.mcc, 1)
        (1.0, 0.8)

    Reference:
        Of the MCC: Hyvärinen and Morioka, 2016, Unsupervised Feature Extraction by Time-Contrastive Learning and
        Nonlinear ICA, section 6; Khemakhem, Kingma, Monti and Hyvärinen, 2020, Variational Autoencoders and Nonlinear
        ICA, section 5. Of the linear map: Roeder, Metz and Kingma, 2021, On Linear Identifiability of Learned
        Representations, theorem 1.
    """
    ones, twos = as_vectors(codes, "the codes"), as_vectors(others, "the other codes")
    check_together(ones, twos, ("the codes", "the other codes"), FOR_EACH * (ones.shape[1] + 1))
    learn, measure = halves(len(ones), seed)
    moving = [varies(table[learn]) & varies(table[measure]) for table in (ones, twos)]
    if not all(each.any() for each in moving):
        raise ValueError("no dimension of the codes differs between data in each half: train longer, or take more data")
    z, w = (_in_units(table[:, each], learn) for table, each in zip((ones, twos), moving, strict=True))
    r_squared = torch.full(twos.shape[1:], torch.nan, dtype=torch.float64)
    r_squared[moving[1]] = _r_squared(z[learn], w[learn], z[measure], w[measure])
    return Consistency(r_squared, r_squared.nanmean().item(), _mcc(z, w, learn, measure))


def _in_units(table: Tensor, learn: Tensor) -> Tensor:
    """Return values around their mean on a half of the data, in units of their standard deviation there."""
    return (table - table[learn].mean(0)) / table[learn].std(0)


def _r_squared(inputs: Tensor, outputs: Tensor, new_inputs: Tensor, new_outputs: Tensor) -> Tensor:
    """Return the share of the variance of new outputs that a linear map, fitted to other data, predicts."""
    linear = torch.linalg.lstsq(_with_one(inputs), outputs, driver="gelsd").solution  # also if columns repeat
    error = new_outputs - _with_one(new_inputs) @ linear
    return 1 - error.square().sum(0) / (new_outputs - new_outputs.mean(0)).square().sum(0)


def _with_one(table: Tensor) -> Tensor:
    return torch.cat([table, torch.ones_like(table[:, :1])], -1)


def _mcc(ones: Tensor, twos: Tensor, learn: Tensor, measure: Tensor) -> float:
    """Return the mean correlation of the pairs of dimensions that correlate most on one half, measured on the other."""
    seen, held_out = (_correlation(ones[half], twos[half]) for half in (learn, measure))
    rows, columns = linear_sum_assignment(seen.abs().numpy(), maximize=True)
    return (seen.sign() * held_out)[rows, columns].mean().item()


def _correlation(ones: Tensor, twos: Tensor) -> Tensor:
    """Return the correlation of each dimension with each of the others, shape (D, E)."""
    first, second = ((table - table.mean(0)) / table.std(0, correction=0) for table in (ones, twos))
    return first.T @ second / len(ones)
