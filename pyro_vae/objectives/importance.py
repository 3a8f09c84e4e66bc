"""Importance-weighted bounds, and estimators of their gradients."""

import math
from collections.abc import Callable
from functools import partial

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_vae.arguments import as_number, as_size
from pyro_vae.distributions.wrappers import family, is_masked, with_density
from pyro_vae.objectives._objective import (
    Draws,
    Objective,
    check_support,
    masked,
    path_only,
    the_latent_site,
    whole_score,
    without_path,
)
from pyro_vae.objectives.particles import FRESH, INDEPENDENT

SMALLEST = -60.0  # lower limit of log-weights, as a gradient is divided by a weight and later multiplied by it


def log_mean_exp(log_weights: Tensor) -> Tensor:
    r"""Return :math:`\log \frac1K \sum_k e^{v_k}` over the first dimension.

    Example:
        >>> log_mean_exp(torch.tensor([[1000.0], [1000.0]]))
        tensor([1000.])
    """
    return log_weights.logsumexp(0) - math.log(len(log_weights))


class IWAE(Objective):
    r"""The importance-weighted bound of K particles.

    .. math:: \mathcal{L}_K = \mathbb{E}_{z_{1:K} \sim q} \Big[ \log \frac1K \sum_k w_k \Big], \qquad
              w_k = \frac{p(x, z_k)}{q(z_k|x)}

    It grows with K towards :math:`\log p(x)`; at K = 1 it is the evidence lower bound. The gradient is pathwise.

    Arguments:
        num_particles: K, at least 1.
        chunk: how many of them are in memory at a time (default: all).

    Raises:
        ValueError: when it is run, for a KL weight, an encoder without a pathwise sampler, or sites that are not in one
            plate over the data, or that only one program draws.

    Example:
        >>> from pyro_vae import VAE, data, decoders, encoders, fit, priors
        >>> x = data.load("digits").train
        >>> vae = VAE(priors.Normal(2), encoders.Normal((1, 8, 8), 2), decoders.Bernoulli(2, (1, 8, 8), grey=True))
        >>> history = fit(vae.model, vae.guide, x, loss=IWAE(5), epochs=1)

    Reference:
        Burda, Grosse and Salakhutdinov, 2016, Importance Weighted Autoencoders, equation 8.
    """

    def estimate(self, draws: Draws) -> Tensor:
        return log_mean_exp(draws.log_weights)


class DReG(Objective):
    r"""The bound of `IWAE`, with a doubly reparameterized gradient for the encoder.

    .. math:: \nabla_\phi \mathcal{L}_K = \mathbb{E} \Big[ \sum_k \tilde w_k^2
              \frac{\partial \log w_k}{\partial z_k} \frac{\partial z_k}{\partial \phi} \Big], \qquad
              \tilde w_k = \frac{w_k}{\sum_j w_j}

    It has the same expectation as the gradient of `IWAE`, and a signal-to-noise ratio that grows with K. Prior and
    decoder have the gradient of `IWAE`.

    Arguments:
        num_particles: K, at least 1.
        chunk: how many of them are in memory at a time (default: all).

    Raises:
        ValueError: as for `IWAE`, and for a guide with several latent sites.

    Example:
        >>> DReG(64)
        DReG(num_particles=64)

    Reference:
        Tucker et al., 2019, Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives, equation 8.
    """

    needs = (INDEPENDENT, FRESH)

    def of_guide(self, trace: Trace) -> tuple[Tensor, ...]:
        site = the_latent_site(self, trace)
        check_support(self, site)
        log_q = path_only(self, site)
        if site["value"].requires_grad and not log_q.requires_grad:
            raise ValueError(
                f"DReG weighs draws by their density, which {family(site['fn'])} at site {site['name']!r} has not: take"
                " IWAE or Trace_ELBO"
            )
        if is_masked(site["fn"]):
            raise ValueError(
                f"DReG takes no .mask() at the distribution of site {site['name']!r}: put poutine.mask around the site,"
                " or take IWAE"
            )
        return log_q, site["value"], *([site["mask"]] if isinstance(site["mask"], Tensor) else [])

    def estimate(self, draws: Draws) -> Tensor:
        value, *masks = draws.own
        weights = draws.log_weights.detach().softmax(0)
        for mask in masks:  # where q has no part in the bound, there is no score to be exchanged for a second weight
            weights = weights.where(mask, 1.0)
        _scale_gradient(value, weights)
        return log_mean_exp(draws.log_weights)


def _scale_gradient(value: Tensor, factor: Tensor) -> None:
    """Multiply the gradient that will reach a value by a factor of shape (K, B)."""
    if value.requires_grad:
        value.register_hook(partial(torch.mul, factor.reshape(*factor.shape, *[1] * (value.dim() - 2))))


class Renyi(Objective):
    r"""The variational Renyi bound; with alpha at minus infinity VR-max.

    .. math:: \mathcal{L}_\alpha = \frac{1}{1 - \alpha} \mathbb{E} \Big[ \log \frac1K \sum_k w_k^{1 - \alpha} \Big]

    At alpha = 0 it is `IWAE`, and as alpha approaches 1 it becomes the evidence lower bound. For alpha below 0 and many
    particles, it lies above :math:`\log p(x)`.

    Arguments:
        alpha: the order, a number, or ``-math.inf`` for the largest weight only.
        num_particles: K, at least 1.
        chunk: how many of them are in memory at a time (default: all).

    Raises:
        ValueError: for an alpha that is NaN or plus infinity; when it is run, as for `IWAE`.

    Example:
        >>> Renyi(0.5, num_particles=8)
        Renyi(alpha=0.5, num_particles=8)

    Reference:
        Li and Turner, 2016, Renyi Divergence Variational Inference, equations 11 and 15.
    """

    def __init__(self, alpha: float = 0.5, num_particles: int = 2, chunk: int | None = None) -> None:
        super().__init__(num_particles, chunk)
        if math.isnan(as_number(alpha, "alpha")) or alpha == math.inf:
            raise ValueError(f"alpha must be a number or -inf, not {alpha!r}")
        self.alpha = alpha

    def estimate(self, draws: Draws) -> Tensor:
        if self.alpha == -math.inf:
            return draws.log_weights.max(0).values
        if self.alpha == 1:
            return draws.log_weights.mean(0)
        # In 64 bits and by expm1: a logarithm near 0 is divided by a number as small, which magnifies rounding errors.
        powers = (1 - self.alpha) * draws.log_weights.double()
        top = powers.detach().max(0).values.nan_to_num(posinf=0, neginf=0)
        below = (powers - top).expm1().mean(0)
        return ((top + below.log1p()) / (1 - self.alpha)).to(draws.log_weights.dtype)


class CIWAE(Objective):
    r"""A combination of the evidence lower bound and `IWAE`.

    .. math:: \beta \, \mathcal{L}_1 + (1 - \beta) \, \mathcal{L}_K

    Arguments:
        beta: the share of the evidence lower bound, from 0 to 1.
        num_particles: K, at least 1.
        chunk: how many of them are in memory at a time (default: all).

    Raises:
        ValueError: for a beta outside [0, 1]; when it is run, as for `IWAE`.

    Example:
        >>> CIWAE(0.05, num_particles=64)
        CIWAE(beta=0.05, num_particles=64)

    Reference:
        Rainforth et al., 2018, Tighter Variational Bounds are Not Necessarily Better, equation 12.
    """

    def __init__(self, beta: float = 0.5, num_particles: int = 2, chunk: int | None = None) -> None:
        super().__init__(num_particles, chunk)
        if not 0 <= as_number(beta, "the beta of CIWAE") <= 1:
            raise ValueError(f"the beta of CIWAE must be from 0 to 1, not {beta!r}")
        self.beta = beta

    def estimate(self, draws: Draws) -> Tensor:
        return self.beta * draws.log_weights.mean(0) + (1 - self.beta) * log_mean_exp(draws.log_weights)


class _Grouped(Objective):
    """An objective of M groups of K particles each."""

    def __init__(self, groups: int = 8, num_particles: int = 8, chunk: int | None = None) -> None:
        super().__init__(as_size(groups, "groups") * as_size(num_particles, "num_particles"), chunk)
        self.groups = groups

    def __repr__(self) -> str:
        return f"{type(self).__name__}(groups={self.groups}, num_particles={self.num_particles // self.groups})"

    def grouped(self, log_weights: Tensor) -> Tensor:
        """Return log-weights of shape (M K, B) as (K, M, B)."""
        return log_weights.unflatten(0, (self.groups, -1)).transpose(0, 1)


class MIWAE(_Grouped):
    r"""The average of M bounds of K particles each.

    .. math:: \frac1M \sum_m \log \frac1K \sum_k w_{m,k}

    Arguments:
        groups: M, at least 1.
        num_particles: K, at least 1; M K particles are drawn.
        chunk: how many of those are in memory at a time (default: all).

    Raises:
        ValueError: when it is run, as for `IWAE`.

    Example:
        >>> MIWAE(8, num_particles=8)
        MIWAE(groups=8, num_particles=8)

    Reference:
        Rainforth et al., 2018, Tighter Variational Bounds are Not Necessarily Better, equation 10.
    """

    def estimate(self, draws: Draws) -> Tensor:
        return log_mean_exp(self.grouped(draws.log_weights)).mean(0)


class PIWAE(_Grouped):
    r"""`IWAE` of M K particles for prior and decoder, `MIWAE` of M groups of K for the encoder.

    .. math:: \nabla_\theta \mathcal{L}_{MK}, \qquad \nabla_\phi \frac1M \sum_m \log \frac1K \sum_k w_{m,k}

    Arguments:
        groups: M, at least 1.
        num_particles: K, at least 1; M K particles are drawn.
        chunk: how many of those are in memory at a time (default: all).

    Raises:
        ValueError: as for `IWAE`, and for a guide with several latent sites.

    Example:
        >>> PIWAE(8, num_particles=8)
        PIWAE(groups=8, num_particles=8)

    Reference:
        Rainforth et al., 2018, Tighter Variational Bounds are Not Necessarily Better, equations 13 and 14.
    """

    def of_guide(self, trace: Trace) -> tuple[Tensor, ...]:
        site = the_latent_site(self, trace)
        with with_density(f"at site {site['name']!r}", site["fn"]):
            log_q = site["fn"].log_prob(without_path(site["value"]))
        return path_only(self, site), site["value"], masked(log_q, site)

    def estimate(self, draws: Draws) -> Tensor:
        log_weights = draws.log_weights.detach()
        for_model = log_weights.log_softmax(0).clamp(min=SMALLEST).exp()
        grouped = self.grouped(log_weights).softmax(0) / self.groups
        for_guide = grouped.transpose(0, 1).flatten(0, 1)
        # The gradient that reaches z is weighed by for_model; on its way to the encoder it is reweighed by for_guide.
        value, score = draws.own
        _scale_gradient(value, for_guide / for_model)
        score = for_guide * score
        surrogate = (for_model * draws.log_weights - score).sum(0)
        return log_mean_exp(log_weights) + surrogate - surrogate.detach()


class VIMCO(Objective):
    r"""The bound of `IWAE`, with a gradient by the score function: for discrete codes, and for any others.

    .. math:: \nabla \mathcal{L}_K = \mathbb{E} \Big[ \sum_k (\hat L - \hat L_{-k}) \nabla \log q(z_k|x)
              + \sum_k \tilde w_k \nabla \log w_k \Big]

    :math:`\hat L_{-k}` is the bound with :math:`w_k` replaced by the geometric mean of the others. It is a baseline for
    each particle, computed from the other particles, so that no baseline has to be learned.

    Arguments:
        num_particles: K, at least 2.
        chunk: how many of them are in memory at a time (default: all).

    Raises:
        ValueError: for fewer than 2 particles; when it is run, for a KL weight, or sites that are not in one plate over
            the data.

    Example:
        >>> VIMCO(5)
        VIMCO(num_particles=5)

    Reference:
        Mnih and Rezende, 2016, Variational Inference for Monte Carlo Objectives, equations 10 and 11.
    """

    pathwise = False  # samples are used without a pathwise gradient
    needs = (INDEPENDENT, FRESH)

    def __init__(self, num_particles: int = 2, chunk: int | None = None) -> None:
        super().__init__(num_particles, chunk)
        if num_particles < 2:
            raise ValueError(f"VIMCO takes at least 2 particles, not {num_particles!r}: each is the others' baseline")

    def of_guide(self, trace: Trace) -> tuple[Tensor, ...]:
        return *super().of_guide(trace), whole_score(self, trace)

    def estimate(self, draws: Draws) -> Tensor:
        log_weights = draws.log_weights
        bound = log_mean_exp(log_weights)
        with torch.no_grad():
            signal = bound - _leave_one_out(log_weights)
        score = (signal * draws.own[0]).sum(0)
        return bound + score - score.detach()


def _leave_one_out(log_weights: Tensor) -> Tensor:
    """Return the bounds in which each weight is replaced by the geometric mean of the others, shape (K, B)."""
    count = len(log_weights)
    mean = _of_others(log_weights, torch.cumsum, torch.add, 0.0) / (count - 1)
    others = _of_others(log_weights, torch.logcumsumexp, torch.logaddexp, -math.inf)
    return torch.logaddexp(others, mean) - math.log(count)


def _of_others(
    values: Tensor, scan: Callable[[Tensor, int], Tensor], join: Callable[[Tensor, Tensor], Tensor], none: float
) -> Tensor:
    """Reduce, for each value, all others, shape (K, B): joining those before and after it avoids a cancellation."""
    edge = torch.full_like(values[:1], none)
    before = torch.cat([edge, scan(values[:-1], 0)])
    after = torch.cat([scan(values[1:].flip(0), 0).flip(0), edge])
    return join(before, after)
