"""Distributions of positive numbers, and of shares of a whole."""

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import kl_divergence, register_kl

from pyro_vae.distributions._gammas import wide


class Gamma(dist.Gamma):
    """Gamma scored in 64 bits: in float32 cancellation leads to an error of 0.1 at a concentration of 100,000.

    Draws below the smallest positive number are replaced by it. A KL that is estimated from draws is accurate in
    float32 for concentrations of 0.15 and above.

    Example:
        >>> Gamma(torch.tensor(1e6), torch.tensor(1.0)).log_prob(torch.tensor(1e6))
        tensor(-7.8267)
    """

    def wide(self) -> dist.Gamma:
        """Return the same distribution in 64 bits."""
        return dist.Gamma(wide(self.concentration), wide(self.rate), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return self.wide().log_prob(wide(value)).to(self.concentration.dtype)

    def cdf(self, value: Tensor) -> Tensor:
        return self.wide().cdf(wide(value).clamp(min=0)).to(self.concentration.dtype)

    def entropy(self) -> Tensor:
        return self.wide().entropy().to(self.concentration.dtype)


def shares(concentration: Tensor) -> Tensor:
    r"""Draw from a Dirichlet distribution, however small its concentrations.

    .. math:: z = \mathrm{softmax}(\log g), \qquad \log g_d = \log g_d' + \frac{\log u_d}{\alpha_d}, \qquad
              g_d' \sim \mathrm{Gamma}(\alpha_d + 1), \; u_d \sim \mathrm{Uniform}(0, 1)

    Torch divides gamma variates by their sum. At a concentration of 0.001 all of them often underflow, and torch then
    returns equal shares, although one share should be nearly 1.

    Arguments:
        concentration: :math:`\alpha`, above 0, shape (\*batch, D).

    Returns:
        A tensor of the same shape.

    Example:
        >>> shares(torch.full((5, 3), 1e-6)).max(-1).values
        tensor([1., 1., 1., 1., 1.])

    Reference:
        Marsaglia and Tsang, 2000, A Simple Method for Generating Gamma Variables, section 6.
    """
    log_uniform = -torch.empty_like(concentration).exponential_()
    log_gamma = torch._standard_gamma(concentration + 1).log() + log_uniform / concentration
    return log_gamma.softmax(-1)


class Dirichlet(dist.Dirichlet):
    """Dirichlet scored in 64 bits: in float32 cancellation leads to an error of 0.1 at concentrations of 100,000.

    Draws without a gradient are right for small concentrations too (`shares`). Shares below the smallest positive
    number are replaced by it; a decoder sees no difference, but the density is that of another point. A KL that is
    estimated from draws is accurate in float32 for concentrations from 0.15 to 1,000.

    Example:
        >>> Dirichlet(torch.full((2,), 1e6)).log_prob(torch.tensor([0.5, 0.5]))
        tensor(7.0285)
    """

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008 (as torch has it)
        if self.concentration.requires_grad:  # use torch's draws, whose gradients vary less
            return super().rsample(sample_shape)
        limits = torch.finfo(self.concentration.dtype)
        return shares(self.concentration.expand(self._extended_shape(sample_shape))).clamp(min=limits.tiny)

    def wide(self) -> dist.Dirichlet:
        """Return the same distribution in 64 bits."""
        return dist.Dirichlet(wide(self.concentration), validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return self.wide().log_prob(wide(value)).to(self.concentration.dtype)

    @property
    def variance(self) -> Tensor:
        return self.wide().variance.to(self.concentration.dtype)

    @property
    def mode(self) -> Tensor:
        """The most probable shares; NaN if the density is largest at an edge, or is constant."""
        above = self.concentration - 1
        inside = (above > 0).all(-1, keepdim=True)
        return (above / above.sum(-1, keepdim=True)).where(inside, float("nan"))

    def entropy(self) -> Tensor:
        return self.wide().entropy().to(self.concentration.dtype)


class Weibull(dist.Weibull):
    r"""Weibull distribution whose density and variance are accurate, and whose mode is right, at every concentration.

    .. math:: \mathrm{Var}[z] = \lambda^2 \left(\Gamma(1 + 2 / k) - \Gamma(1 + 1 / k)^2\right)

    In float32 torch's difference is off by 2 % at a concentration of 1,000, and its log-density is -inf where a power
    of a value underflows, as at the draws of another posterior. At concentrations below 1 the density grows
    towards 0, and the mode is 0. Small probabilities (``cdf``) and their quantiles (``icdf``) are accurate as well.

    Arguments:
        scale: :math:`\lambda`, above 0.
        concentration: k, above 0.

    Returns:
        A distribution of the shape to which both broadcast.

    Example:
        >>> Weibull(torch.tensor(1.0), torch.tensor(1000.0)).variance
        tensor(1.6406e-06)

    Reference:
        Weibull, 1951, A Statistical Distribution Function of Wide Applicability.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        k, log_scale = wide(self.concentration), wide(self.scale).log()
        log_ratio = wide(value).log() - log_scale
        log_prob = k.log() - log_scale + (k - 1) * log_ratio - (k * log_ratio).exp()
        return log_prob.to(self.scale.dtype)

    @property
    def variance(self) -> Tensor:
        step = 1 / wide(self.concentration)
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
        return -(-((value.clamp(min=0) / self.scale) ** self.concentration)).expm1()

    def icdf(self, value: Tensor) -> Tensor:
        return self.scale * (-(-value).log1p()) ** self.concentration_reciprocal


@register_kl(Gamma, Gamma)
@register_kl(Dirichlet, Dirichlet)
def _kl(p: Gamma | Dirichlet, q: Gamma | Dirichlet) -> Tensor:
    return kl_divergence(p.wide(), q.wide()).to(p.concentration.dtype)
