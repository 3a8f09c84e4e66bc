"""The evidence lower bound with another gradient or another penalty, and the thermodynamic bound."""

import math
from typing import Any

import torch
from pyro.distributions.torch_distribution import ExpandedDistribution
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.distributions import Independent

from pyro_vae.arguments import as_number, as_size
from pyro_vae.distributions.wrappers import family, is_masked, layers
from pyro_vae.objectives._objective import (
    Draws,
    Objective,
    Terms,
    check_support,
    in_a_line,
    path_only,
    reported,
    the_latent_site,
    unscaled,
    whole_score,
)
from pyro_vae.objectives.particles import FRESH, INDEPENDENT


class StickingTheLanding(Objective):
    r"""The evidence lower bound, its gradient without the score of q.

    .. math:: \nabla \; \mathbb{E}_q \big[ \log p(x, z) - \log q_{\bar\phi}(z|x) \big],
              \qquad \bar\phi \text{ held fixed, } z \text{ a function of } \phi

    The score that is left out has expectation 0. Without it, the variance of the encoder's gradient vanishes as q
    approaches :math:`p(z|x)`.

    Arguments:
        num_particles: samples that are averaged, at least 1.
        chunk: how many of them are in memory at a time (default: all).

    Raises:
        ValueError: when it is run, for an encoder without a pathwise sampler, a guide with several latent sites, or
            sites that are not in one plate over the data.

    Example:
        >>> StickingTheLanding()
        StickingTheLanding(num_particles=1)

    Reference:
        Roeder, Wu and Duvenaud, 2017, Sticking the Landing, equation 7.
    """

    weighs_kl = True
    needs = (FRESH,)

    def of_guide(self, trace: Trace) -> tuple[Tensor, ...]:
        site = the_latent_site(self, trace)
        check_support(self, site)
        return (site["scale"] * path_only(self, site),)

    def estimate(self, draws: Draws) -> Tensor:
        return draws.log_weights.mean(0)


class Thermodynamic(Objective):
    r"""The thermodynamic variational bound: a left Riemann sum along the path from q to p.

    .. math:: \sum_{j=0}^{J-1} (\beta_{j+1} - \beta_j) \, \mathbb{E}_{\pi_{\beta_j}} [\log w], \qquad
              \pi_\beta(z) \propto q(z|x) \, w^\beta, \quad 0 = \beta_0 < \dots < \beta_J = 1

    The expectations are self-normalized averages over K samples of q. The gradient is the covariance that the paper
    gives, and needs no pathwise sampler. At J = 1 the bound is the evidence lower bound.

    Arguments:
        num_particles: K, at least 2.
        partitions: J, at least 1.
        first: :math:`\beta_1`, between 0 and 1; the later ones are evenly spaced on a logarithmic scale.
        chunk: how many particles are in memory at a time (default: all).

    Raises:
        ValueError: for numbers out of range; when it is run, for a KL weight, or sites that are not in one plate over
            the data.

    Example:
        >>> Thermodynamic(num_particles=10, partitions=3, first=0.1).steps
        [0.0, 0.1, 0.316..., 1.0]

    Reference:
        Masrani, Le and Wood, 2019, The Thermodynamic Variational Objective, equations 9 and 14.
    """

    pathwise = False
    needs = (INDEPENDENT, FRESH)

    def __init__(
        self, num_particles: int = 10, partitions: int = 5, first: float = 0.025, chunk: int | None = None
    ) -> None:
        super().__init__(num_particles, chunk)
        as_size(partitions, "partitions")
        if num_particles < 2 or not 0 < as_number(first, "first") < 1:
            received = f"num_particles={num_particles!r}, partitions={partitions!r}, first={first!r}"
            raise ValueError(f"Thermodynamic takes 2 particles or more, 1 partition or more, 0 < first < 1: {received}")
        inner = [first ** (1 - j / (partitions - 1)) for j in range(partitions - 1)] if partitions > 1 else []
        self.partitions, self.first = partitions, first
        self.steps = [0.0, *inner, 1.0]

    def of_guide(self, trace: Trace) -> tuple[Tensor, ...]:
        return *super().of_guide(trace), whole_score(self, trace)

    def estimate(self, draws: Draws) -> Tensor:
        log_weights, (whole,) = draws.log_weights, draws.own
        total = torch.zeros_like(log_weights[0])
        for beta, following in zip(self.steps, self.steps[1:], strict=False):
            weights = (beta * log_weights.detach()).softmax(0)
            mean = (weights * log_weights.detach()).sum(0)
            centred = weights * (log_weights.detach() - mean)
            # The sample covariance of K draws times K / (K - 1), which is unbiased at beta = 0.
            count = len(log_weights)
            score = count / (count - 1) * (centred * (whole + beta * log_weights)).sum(0)
            path = (weights * log_weights).sum(0)
            total = total + (following - beta) * (path + score - score.detach())
        return total


class _Penalized(Objective):
    """The evidence lower bound with another penalty in place of the KL; the reported bound still has the KL."""

    weighs_kl = True

    def of_site(self, site: dict[str, Any]) -> Tensor:
        """Return what the penalty needs from the guide's latent site, for each particle, shape (K, ...)."""
        raise NotImplementedError

    def of_prior(self, _: dict[str, Any]) -> tuple[Tensor, ...]:
        """Return what the penalty needs from the same site of the model, for each particle, shapes (K, ...)."""
        return ()

    def penalty(self, draws: Draws) -> Tensor:
        """Return the penalty that replaces the KL, in nats, summed over the batch."""
        raise NotImplementedError

    def of_guide(self, trace: Trace) -> tuple[Tensor, ...]:
        site = the_latent_site(self, trace)
        if is_masked(site["fn"]) or not (site["mask"] is None or site["mask"] is True):
            name = f"{type(self).__name__} holds the data of a batch together"
            raise ValueError(f"{name}, and takes no mask at site {site['name']!r}: leave the masked data out")
        self._check_whole(trace)
        return *super().of_guide(trace), self.of_site(site)

    def of_model(self, trace: Trace) -> tuple[Tensor, ...]:
        self._check_whole(trace)
        return *super().of_model(trace), *self.of_prior(the_latent_site(self, trace))

    def of_draws(self, draws: Draws) -> Terms:
        reconstruction, kl = reported(draws)
        loss = -draws.likelihood.mean(0).sum() + self.penalty(draws)
        return Terms(loss, reconstruction + kl, reconstruction, kl)

    def _check_whole(self, trace: Trace) -> None:
        """Refuse scales that a sum over the data could apply, but a penalty on a whole batch cannot."""
        weighed = trace.stochastic_nodes  # these may have one number as their scale, the KL weight
        for site in (trace.nodes[name] for name in [*weighed, *trace.observation_nodes]):
            one = torch.as_tensor(site["scale"]).numel() == 1
            if not (unscaled(site) or site["infer"].get("_deterministic") or (one and site["name"] in weighed)):
                raise ValueError(
                    f"{type(self).__name__} holds the data of a batch together, and takes no scale of"
                    f" {in_a_line(site['scale'])} at site {site['name']!r}: scale the loss or the learning rate, and"
                    " take the part of the data before the programs"
                )


def by_dimension(objective: Objective, site: dict[str, Any], value: Tensor) -> Tensor:
    r"""Return the log-density of each dimension of a site's value, shape (\*batch, D); a single number has D = 1.

    A distribution whose dimensions depend on each other is refused.
    """
    fn = site["fn"]
    whole = next(layer for layer in layers(fn) if not isinstance(layer, Independent | ExpandedDistribution))
    if whole.event_shape:
        raise ValueError(
            f"{type(objective).__name__} needs independent latent dimensions, which {family(fn)} at site"
            f" {site['name']!r} has not: take a Normal prior and encoder"
        )
    shape = torch.broadcast_shapes(value.shape, fn.batch_shape + fn.event_shape)
    return as_vectors(whole.log_prob(value).expand(shape), fn.event_dim)


def as_vectors(value: Tensor, event_dim: int) -> Tensor:
    """Return values with each event flattened to a vector; a single number becomes a vector of one entry."""
    return value.reshape(*value.shape[: value.dim() - event_dim], -1)


class FreeBits(_Penalized):
    r"""The evidence lower bound with a part of each dimension's KL for free.

    .. math:: \mathbb{E}_q [\log p(x|z)] - \sum_d \max \Big( \lambda, \frac1B \sum_n \mathrm{KL}_{n,d} \Big)

    Arguments:
        floor: :math:`\lambda`, nats per latent dimension, at least 0.
        num_particles: samples that are averaged, at least 1.
        chunk: how many of them are in memory at a time (default: all).

    Raises:
        ValueError: for a negative floor; when it is run, for a prior or an encoder whose dimensions are not
            independent, or as for `StickingTheLanding`.

    Example:
        >>> FreeBits(0.1)
        FreeBits(floor=0.1, num_particles=1)

    Reference:
        Kingma et al., 2016, Improved Variational Inference with Inverse Autoregressive Flow, equation 15.
    """

    def __init__(self, floor: float = 0.1, num_particles: int = 1, chunk: int | None = None) -> None:
        super().__init__(num_particles, chunk)
        if not 0 <= as_number(floor, "the floor of FreeBits") < math.inf:
            raise ValueError(f"the floor of FreeBits must be at least 0 and finite, not {floor!r}")
        self.floor = floor

    def of_site(self, site: dict[str, Any]) -> Tensor:
        return site["scale"] * by_dimension(self, site, site["value"])

    def of_prior(self, site: dict[str, Any]) -> tuple[Tensor, ...]:
        return (site["scale"] * by_dimension(self, site, site["value"]),)

    def penalty(self, draws: Draws) -> Tensor:
        posterior, prior = draws.own
        return (posterior - prior).mean((0, 1)).clamp(min=self.floor).sum() * draws.likelihood.shape[1]


class InfoVAE(_Penalized):
    r"""The evidence lower bound with the aggregate posterior drawn to the prior by maximum mean discrepancy.

    .. math:: \mathbb{E}_q [\log p(x|z)] - (1 - \alpha) \, \mathrm{KL}(q(z|x) \,\|\, p(z))
              - (\alpha + \lambda - 1) \, \mathrm{MMD}(q(z), p(z))

    The kernel is the sum of inverse multiquadratics :math:`C / (C + \|z - z'\|^2)`, C = 2 D s, for s from 0.1 to 10. At
    alpha = 1 there is no KL, which gives the Wasserstein autoencoder. A learned prior is also trained through its
    draws, so it needs a pathwise sampler.

    Arguments:
        alpha: how much of the KL is removed; 1 removes all of it.
        scale: :math:`\lambda`, the weight of the discrepancy, in nats per datum.
        num_particles: samples that are averaged, at least 1; the codes of each are compared with as many prior draws.
        chunk: how many of them are in memory at a time (default: all).

    Raises:
        ValueError: for numbers that are not finite; when it is run, as for `StickingTheLanding`, and for a learned
            prior without a pathwise sampler.

    Example:
        >>> InfoVAE(alpha=1.0, scale=10.0)
        InfoVAE(alpha=1.0, scale=10.0, num_particles=1)

    Reference:
        Zhao, Song and Ermon, 2019, InfoVAE, equation 6; Tolstikhin et al., 2018, Wasserstein Auto-Encoders, section 4.
    """

    def __init__(
        self, alpha: float = 0.0, scale: float = 10.0, num_particles: int = 1, chunk: int | None = None
    ) -> None:
        super().__init__(num_particles, chunk)
        if not (math.isfinite(as_number(alpha, "alpha")) and math.isfinite(as_number(scale, "scale"))):
            raise ValueError(f"alpha and scale must be finite, not {alpha!r} and {scale!r}")
        self.alpha, self.scale = alpha, scale

    def of_site(self, site: dict[str, Any]) -> Tensor:
        return as_vectors(site["value"], site["fn"].event_dim)

    def of_prior(self, site: dict[str, Any]) -> tuple[Tensor, ...]:
        fn = site["fn"]
        draw = fn()
        # A copy, as a transform may remember the draw's inverse as a constant.
        if not fn.has_rsample and self.alpha + self.scale != 1 and fn.log_prob(draw.clone()).requires_grad:
            raise ValueError(
                f"InfoVAE trains a prior by its draws, and {family(fn)} at site {site['name']!r} has no pathwise"
                " sampler: take a prior that has one or that is not learned, or BetaTC or Trace_ELBO"
            )
        return (as_vectors(draw, fn.event_dim),)

    def penalty(self, draws: Draws) -> Tensor:
        count = draws.likelihood.shape[1]
        kl = (draws.posterior - draws.prior).mean(0).sum()
        # For each particle separately: two draws for the same datum are not independent draws of q(z).
        discrepancy = torch.stack([maximum_mean_discrepancy(*pair) for pair in zip(*draws.own, strict=True)]).mean()
        return (1 - self.alpha) * kl + (self.alpha + self.scale - 1) * count * discrepancy


def maximum_mean_discrepancy(a: Tensor, b: Tensor) -> Tensor:
    r"""Return an unbiased estimate of the squared maximum mean discrepancy of two samples.

    .. math:: \mathbb{E} [k(a, a')] + \mathbb{E} [k(b, b')] - 2 \mathbb{E} [k(a, b)]

    Arguments:
        a: a sample, shape (\*batch, N, D), N at least 2.
        b: another, of the same shape.

    Returns:
        The estimates, shape (\*batch,), which may be negative; 0 for samples of size 1.

    Example:
        >>> a = torch.tensor([[0.0], [1.0]])
        >>> maximum_mean_discrepancy(a, a + 100) > maximum_mean_discrepancy(a, a + 1)
        tensor(True)

    Reference:
        Gretton et al., 2012, A Kernel Two-Sample Test, equation 3.
    """
    count = a.shape[-2]
    if count < 2:
        return 0 * a.sum((-2, -1))
    apart = 1 - torch.eye(count, dtype=a.dtype, device=a.device)
    # The terms nearly cancel: their difference in each row is small, so that its mean is rounded less.
    within = ((_kernel(a, a) + _kernel(b, b)) * apart).sum(-1) / (count - 1)
    return (within - 2 * _kernel(a, b).mean(-1)).mean(-1)


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    distance = (a.unsqueeze(-2) - b.unsqueeze(-3)).square().sum(-1)
    widths = [2 * a.shape[-1] * scale for scale in (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)]
    return sum((width / (width + distance) for width in widths), torch.zeros((), dtype=a.dtype, device=a.device))


class BetaTC(_Penalized):
    r"""The evidence lower bound with a weight on the total correlation of the aggregate posterior.

    .. math:: \mathbb{E}_q [\log p(x|z)] - I(z; x) - \beta \, \mathrm{KL} \big( q(z) \,\|\, \textstyle\prod_d q(z_d)
              \big) - \sum_d \mathrm{KL}(q(z_d) \,\|\, p(z_d))

    The aggregate q(z) is estimated from the batch, by the minibatch-weighted sampling of the paper. At beta = 1 the
    penalty is the KL. The number of training data enters that estimate as a constant, :math:`(D - 1) \log N`: it
    changes the value of the loss, but not its gradient.

    Arguments:
        beta: the weight, at least 0.
        size: the number N of training data, at least 1; it changes the loss, but not its gradient.
        num_particles: samples that are averaged, at least 1.
        chunk: how many of them are in memory at a time (default: all).

    Raises:
        ValueError: for a negative beta or a size below 1; when it is run, for an encoder whose dimensions are not
            independent, or as for `StickingTheLanding`.

    Example:
        >>> BetaTC(beta=6.0, size=60000)
        BetaTC(beta=6.0, size=60000, num_particles=1)

    Reference:
        Chen et al., 2018, Isolating Sources of Disentanglement in VAEs, equations 2 and 5.
    """

    def __init__(self, beta: float = 6.0, size: int = 60_000, num_particles: int = 1, chunk: int | None = None) -> None:
        super().__init__(num_particles, chunk)
        as_size(size, "size")
        if not 0 <= as_number(beta, "beta") < math.inf:
            raise ValueError(f"beta must be at least 0 and finite, not {beta!r}")
        self.beta, self.size = beta, size

    def of_site(self, site: dict[str, Any]) -> Tensor:
        z = site["value"].transpose(0, 1).unsqueeze(2)
        pairs = by_dimension(self, site, z)  # log-density of z_ik under q(z|x_j), shape (B, K, B, D)
        size = math.log(self.size * len(z))
        joint = (pairs.sum(-1) - size).logsumexp(2)
        product = (pairs - size).logsumexp(2).sum(-1)
        return (joint - product).sum(0)

    def penalty(self, draws: Draws) -> Tensor:
        (total_correlation,) = draws.own
        return (draws.posterior - draws.prior).mean(0).sum() + (self.beta - 1) * total_correlation.mean()
