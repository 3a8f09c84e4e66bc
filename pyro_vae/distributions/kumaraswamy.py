"""The Kumaraswamy distribution, by logarithms."""

import math

import pyro.distributions as dist
import torch
from torch import Tensor


class Kumaraswamy(dist.Kumaraswamy):
    r"""Kumaraswamy distribution whose draws and densities keep their digits near 0 and 1.

    .. math:: p(z) = a b z^{a - 1} (1 - z^a)^{b - 1}, \qquad
              z = \exp \left( \log(1 - e^{-t / b}) / a \right), \quad t \sim \mathrm{Exponential}(1)

    Torch works from powers of a uniform variate: where :math:`z^a` is small or near 1, all digits of
    :math:`1 - u^{1/b}` or :math:`1 - z^a` cancel, and draws of exactly 0 or 1 have no finite log-density. Here both are
    functions of logarithms, and draws lie strictly between 0 and 1.

    Arguments:
        concentration1: a, above 0.
        concentration0: b, above 0.

    Returns:
        A distribution of the shape to which both broadcast.

    Example:
        >>> Kumaraswamy(torch.tensor(2.0), torch.tensor(1.0)).log_prob(torch.tensor(0.5)).exp()
        tensor(1.)

    Reference:
        Kumaraswamy, 1980, A generalized probability density function for double-bounded random processes.
    """

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        return self._of(self.concentration1.new_empty(self._extended_shape(sample_shape)).exponential_())

    def icdf(self, value: Tensor) -> Tensor:
        return self._of(-(-value).log1p())

    def _of(self, t: Tensor) -> Tensor:
        z = (_log_1_minus_exp(t / self.concentration0) / self.concentration1).exp()
        # Not a clamp of z itself: a draw at an edge keeps its gradient.
        return z + (_inside(z) - z).detach()

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        return self.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        one, zero, log_z = self.concentration1, self.concentration0, _inside(value).log()
        return (one * zero).log() + (one - 1) * log_z + (zero - 1) * _log_1_minus_exp(-one * log_z)

    @property
    def mean(self) -> Tensor:
        # b B(1 + 1 / a, b), whose logarithms cancel: in double precision.
        first, zero = 1 + 1 / self.concentration1.double(), self.concentration0.double()
        log_mean = zero.log() + first.lgamma() + zero.lgamma() - (first + zero).lgamma()
        return log_mean.exp().to(self.concentration1.dtype)


def _inside(z: Tensor) -> Tensor:
    limits = torch.finfo(z.dtype)
    return z.clamp(limits.tiny, 1 - limits.eps / 2)


def _log_1_minus_exp(t: Tensor) -> Tensor:
    # log(1 - exp(-t)) for t >= 0, with all digits on both sides; each branch gets only what it can digest.
    t = t.clamp(min=torch.finfo(t.dtype).tiny)
    near, far = t.clamp(max=1), t.clamp(min=0.5)
    return torch.where(t < math.log(2), (-(-near).expm1()).log(), (-(-far).exp()).log1p())
