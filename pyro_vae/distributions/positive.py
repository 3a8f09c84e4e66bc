"""Distributions of positive numbers, and of shares of a whole."""

import pyro.distributions as dist
from torch import Tensor
from torch.distributions import kl_divergence, register_kl


class Gamma(dist.Gamma):
    """Gamma scored in 64 bits: in float32 its terms cancel to an error of 0.1 at a concentration of 100,000.

    Example:
        >>> import torch
        >>> Gamma(torch.tensor(1e6), torch.tensor(1.0)).log_prob(torch.tensor(1e6))
        tensor(-7.8267)
    """

    def wide(self) -> dist.Gamma:
        """Return the same distribution in 64 bits."""
        return dist.Gamma(self.concentration.double(), self.rate.double(), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return self.wide().log_prob(value.double()).to(self.concentration.dtype)

    def cdf(self, value: Tensor) -> Tensor:
        return self.wide().cdf(value.double()).to(self.concentration.dtype)

    def entropy(self) -> Tensor:
        return self.wide().entropy().to(self.concentration.dtype)


class Dirichlet(dist.Dirichlet):
    """Dirichlet scored in 64 bits: in float32 its terms cancel to an error of 0.1 at concentrations of 100,000.

    Example:
        >>> import torch
        >>> Dirichlet(torch.full((2,), 1e6)).log_prob(torch.tensor([0.5, 0.5]))
        tensor(7.0285)
    """

    def wide(self) -> dist.Dirichlet:
        """Return the same distribution in 64 bits."""
        return dist.Dirichlet(self.concentration.double(), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return self.wide().log_prob(value.double()).to(self.concentration.dtype)

    @property
    def variance(self) -> Tensor:
        return self.wide().variance.to(self.concentration.dtype)

    @property
    def mode(self) -> Tensor:
        """The most probable shares, NaN where the density is largest at an edge, or everywhere the same."""
        above = self.concentration - 1
        inside = (above > 0).all(-1, keepdim=True)
        return (above / above.sum(-1, keepdim=True)).where(inside, float("nan"))

    def entropy(self) -> Tensor:
        return self.wide().entropy().to(self.concentration.dtype)


class Weibull(dist.Weibull):
    r"""Weibull distribution whose variance keeps its digits, and whose mode is right for every concentration.

    .. math:: \mathrm{Var}[z] = \lambda^2 \left(\Gamma(1 + 2 / k) - \Gamma(1 + 1 / k)^2\right)

    In float32 torch's difference is off by 2 % at a concentration of 1,000. Below one of 1 the density grows towards 0,
    and the mode is 0. Small probabilities and their quantiles keep their digits as well.

    Arguments:
        scale: :math:`\lambda`, above 0.
        concentration: k, above 0.

    Returns:
        A distribution of the shape to which both broadcast.

    Example:
        >>> import torch
        >>> Weibull(torch.tensor(1.0), torch.tensor(1000.0)).variance
        tensor(1.6406e-06)

    Reference:
        Weibull, 1951, A Statistical Distribution Function of Wide Applicability.
    """

    @property
    def variance(self) -> Tensor:
        step = 1 / self.concentration.double()
        log_square = 2 * (1 + step).lgamma()
        excess = (1 + 2 * step).lgamma() - log_square
        return self.scale**2 * (log_square.exp() * excess.expm1()).to(self.scale.dtype)

    @property
    def mode(self) -> Tensor:
        above = (1 - self.concentration_reciprocal).clamp(min=0)
        return self.scale * above**self.concentration_reciprocal

    def cdf(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return -(-((value / self.scale) ** self.concentration)).expm1()

    def icdf(self, value: Tensor) -> Tensor:
        return self.scale * (-(-value).log1p()) ** self.concentration_reciprocal


@register_kl(Gamma, Gamma)
@register_kl(Dirichlet, Dirichlet)
def _kl(p: Gamma | Dirichlet, q: Gamma | Dirichlet) -> Tensor:
    return kl_divergence(p.wide(), q.wide()).to(p.concentration.dtype)
