"""A mixture whose draws have a pathwise gradient."""

import math
from typing import ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_vae.distributions.wrappers import expanded

_ONE = torch.Size()  # the shape of one draw


class MixtureOfNormals(dist.TorchDistribution):
    r"""Mixture of normals with diagonal covariances, in any number of dimensions, with pathwise gradients.

    .. math:: p(z) = \sum_k \pi_k \prod_d \mathcal{N}(z_d; \mu_{kd}, \sigma_{kd}^2)

    A draw has no formula in its noise and parameters :math:`\theta` that could be differentiated, but its conditional
    distribution functions :math:`F_d(z_d | z_{<d}; \theta)` have: held at their values, they define z as a function of
    :math:`\theta`, whose derivative is

    .. math:: \frac{d z_d}{d \theta} = -\frac{1}{p(z_d|z_{<d})}
              \left(\frac{\partial F_d}{\partial \theta} + \sum_{j<d} \frac{\partial F_d}{\partial z_j}
              \frac{d z_j}{d \theta}\right).

    First derivatives are right; second ones are not provided. ``pyro.distributions.MixtureOfDiagNormals`` has a
    pathwise gradient too, but refuses one dimension and divides by the distance between means.

    Arguments:
        logits: unnormalized log-weights of the K components, shape (\*batch, K).
        loc: their means, shape (\*batch, K, D).
        scale: their standard deviations, above 0, shape (\*batch, K, D).

    Raises:
        ValueError: where an argument is out of its range.

    Example:
        >>> MixtureOfNormals(torch.zeros(5), torch.randn(5, 2), torch.ones(5, 2)).sample((3,)).shape
        torch.Size([3, 2])

    Reference:
        Graves, 2016, Stochastic Backpropagation through Mixture Density Distributions; Figurnov, Mohamed and Mnih,
        2018, Implicit Reparameterization Gradients, section 3.
    """

    arg_constraints: ClassVar = {
        "logits": constraints.real_vector,
        "loc": constraints.independent(constraints.real, 2),
        "scale": constraints.independent(constraints.positive, 2),
    }
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, logits: Tensor, loc: Tensor, scale: Tensor, validate_args: bool | None = None) -> None:
        batch = torch.broadcast_shapes(logits.shape[:-1], loc.shape[:-2], scale.shape[:-2])
        event = torch.broadcast_shapes(loc.shape[-2:], scale.shape[-2:])
        self.logits = logits.log_softmax(-1).expand(*logits.shape[:-1], event[0])
        self.loc, self.scale = (t.expand(*t.shape[:-2], *event) for t in (loc, scale))
        super().__init__(batch, event[1:], validate_args=validate_args)

    def expand(self, batch_shape: torch.Size, _instance: object = None) -> "MixtureOfNormals":
        return expanded(self, batch_shape)  # the tensors are broadcast where they are used

    @property
    def mean(self) -> Tensor:
        return self._weighted(self.loc)

    @property
    def variance(self) -> Tensor:
        return self._weighted(self.scale**2 + (self.loc - self.mean.unsqueeze(-2)) ** 2)

    def _weighted(self, of_components: Tensor) -> Tensor:
        return (self.logits.exp().unsqueeze(-1) * of_components).sum(-2).expand(*self.batch_shape, *self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        value = value.expand(*torch.broadcast_shapes(value.shape[:-1], self.batch_shape), *self.event_shape)
        if self.loc.dim() == self.scale.dim() == 2 and value.device.type != "mps":  # which has no 64 bits
            of_components = shared_log_probs(value, self.loc, self.scale)
        else:
            of_components = dist.Normal(self.loc, self.scale, validate_args=False).log_prob(value.unsqueeze(-2)).sum(-1)
        return (self.logits + of_components).logsumexp(-1)

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size = _ONE) -> Tensor:
        logits = self.logits.expand(*self.batch_shape, -1)
        component = dist.Categorical(logits=logits).sample(sample_shape)[..., None, None]
        index = component.expand(*component.shape[:-1], *self.event_shape)
        of_drawn = (t.expand(*component.shape[:-2], *t.shape[-2:]).gather(-2, index) for t in (self.loc, self.scale))
        return torch.normal(*of_drawn).squeeze(-2)

    def rsample(self, sample_shape: torch.Size = _ONE) -> Tensor:
        return self.pathwise(self.sample(sample_shape))

    @torch.no_grad()
    def quantile(self, uniform: Tensor) -> Tensor:
        """Return the draw of a given noise, (\\*, D), by conditional quantiles, one dimension after the other."""
        log_weights, entries = self.logits.double(), []
        for u, loc, scale in zip(*(t.double().unbind(-1) for t in (uniform, self.loc, self.scale)), strict=True):
            weights, u = log_weights.softmax(-1), u.unsqueeze(-1)
            of_components = loc + scale * torch.special.ndtri(u)  # the mixture's quantile lies between theirs
            low, high = of_components.amin(-1, True), of_components.amax(-1, True)
            for _ in range(60):
                middle = (low + high) / 2
                below = (weights * torch.special.ndtr((middle - loc) / scale)).sum(-1, True) < u
                low, high = torch.where(below, middle, low), torch.where(below, high, middle)
            entries.append(low.squeeze(-1))
            log_weights = log_weights - ((low - loc) / scale) ** 2 / 2 - scale.log()
        return torch.stack(entries, -1).to(self.loc)

    def pathwise(self, value: Tensor) -> Tensor:
        """Return a draw with its gradient."""
        if not torch.is_grad_enabled() or not any(t.requires_grad for t in (self.logits, self.loc, self.scale)):
            return value
        log_weights, entries = self.logits, []
        for entry, loc, scale in zip(value.unbind(-1), self.loc.unbind(-1), self.scale.unbind(-1), strict=True):
            normals = dist.Normal(loc, scale, validate_args=False)
            weights = log_weights.softmax(-1)
            below = (weights * torch.special.ndtr((entry.unsqueeze(-1) - loc) / scale)).sum(-1)
            density = (weights * normals.log_prob(entry.unsqueeze(-1)).exp()).sum(-1).detach()
            # Of value 0 and of the derivative above: dF/dtheta at the drawn entry, z_<d moving in the weights.
            entry = entry - (below - below.detach()) / density.clamp(min=torch.finfo(density.dtype).tiny)
            log_weights = log_weights + normals.log_prob(entry.unsqueeze(-1))
            entries.append(entry)
        return torch.stack(entries, -1)


def shared_log_probs(value: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    r"""Return the log-probabilities of every value, (\*, D), under each of K normals, (K, D): shape (\*, K).

    The square is multiplied out, so that the sums over the dimensions are matrix products and no array of shape
    (\*, K, D) is made; in 64 bits, as its terms are far larger than it where scales are small.
    """
    z, precise_loc, precision = value.double(), loc.double(), scale.double() ** -2
    squares = z**2 @ precision.mT - 2 * z @ (precise_loc * precision).mT + (precise_loc**2 * precision).sum(-1)
    normalizers = scale.double().log().sum(-1) + loc.shape[-1] / 2 * math.log(2 * math.pi)
    return (-squares / 2 - normalizers).to(value.dtype)
