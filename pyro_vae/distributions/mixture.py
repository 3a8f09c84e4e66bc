"""A mixture whose draws have a pathwise gradient."""

import math
from collections.abc import Iterator
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_vae.distributions.wrappers import expanded

_ONE = torch.Size()  # the shape of one draw


class MixtureOfNormals(dist.TorchDistribution):
    r"""Mixture of normals with diagonal covariances, in any number of dimensions, with pathwise gradients.

    .. math:: p(z) = \sum_k \pi_k \prod_d \mathcal{N}(z_d; \mu_{kd}, \sigma_{kd}^2)

    There is no differentiable formula for a draw in terms of noise and the parameters :math:`\theta`. But its
    conditional distribution functions :math:`F_d(z_d | z_{<d}; \theta)` are differentiable: if their values are held
    fixed, they define z as a function of :math:`\theta`, whose derivative is

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
        ValueError: if an argument is out of its range.

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
        if self.loc.dim() == self.scale.dim() == 2 and value.device.type != "mps":  # MPS has no 64-bit floats
            of_components = shared_log_probs(value, self.loc, self.scale)
        else:
            of_components = _log_density(value.unsqueeze(-2), self.loc, self.scale).sum(-1)
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
        """Return the draw for given noise of shape (\\*, D), by conditional quantiles, one dimension at a time."""
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
            weights = log_weights.softmax(-1)
            below = (weights * torch.special.ndtr((entry.unsqueeze(-1) - loc) / scale)).sum(-1)
            density = (weights * _log_density(entry.unsqueeze(-1), loc, scale).exp()).sum(-1).detach()
            # The subtracted term is 0, with the derivative above: dF/dtheta at the drawn entry. The weights hold z_<d.
            entry = entry - (below - below.detach()) / density.clamp(min=torch.finfo(density.dtype).tiny)
            log_weights = log_weights + _log_density(entry.unsqueeze(-1), loc, scale)
            entries.append(entry)
        return torch.stack(entries, -1)


def _log_density(value: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    # Divide before squaring: the square of a scale, or a quotient with it, may leave the range of float32.
    return -(((value - loc) / scale) ** 2) / 2 - scale.log() - math.log(2 * math.pi) / 2


def shared_log_probs(value: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """Return the log-probabilities of every value, (\\*, D), under each of K normals, (K, D): shape (\\*, K)."""
    precise_loc, precise_scale = loc.double(), scale.double()
    squares = squared_distances(value.double().reshape(-1, value.shape[-1]), precise_loc, precise_scale**-2)
    normalizers = precise_scale.log().sum(-1) + loc.shape[-1] / 2 * math.log(2 * math.pi)
    return (-squares / 2 - normalizers).to(value.dtype).reshape(*value.shape[:-1], len(loc))


@torch.library.custom_op("pyro_vae::squared_distances", mutates_args=())
def squared_distances(value: Tensor, loc: Tensor, precision: Tensor) -> Tensor:
    r"""Return the weighted squared distance of every value to each of K locations.

    .. math:: s_{nk} = \sum_d p_{kd} (z_{nd} - \mu_{kd})^2

    The square is expanded, so that the sums over the dimensions are matrix products and no array of shape (N, K, D) is
    made. If its terms are so much larger than the result that 64 bits lose it, the differences are squared one by one,
    which takes several times as long. This function is a custom operation of torch, because the recording of a step
    (`pyro_vae.runtime.engine`) cannot branch on values.

    Arguments:
        value: z, shape (N, D), in 64 bits.
        loc: :math:`\mu`, shape (K, D).
        precision: p, shape (K, D).

    Returns:
        A tensor of shape (N, K).

    Example:
        >>> one = torch.ones(1, 2, dtype=torch.float64)
        >>> squared_distances(one, one + 1e-9, 1e18 * one)
        tensor([[2.]], dtype=torch.float64)
    """
    of_value, of_loc = value**2 @ precision.mT, (loc**2 * precision).sum(-1)
    squares = of_value - 2 * value @ (loc * precision).mT + of_loc
    if _keeps_digits(squares.clamp(min=1), of_value + of_loc):
        return squares
    each = [torch.einsum("nkd,kd->nk", *both) for both in _one_by_one(value, loc, precision)]
    return torch.cat(each, -1)


@torch.library.custom_op("pyro_vae::weighted_squares", mutates_args=())
def weighted_squares(value: Tensor, loc: Tensor, weights: Tensor) -> Tensor:
    r"""Return the gradient of weighted sums of `squared_distances` for the precision, computed in the same way.

    .. math:: s_{kd} = \sum_n w_{nk} (z_{nd} - \mu_{kd})^2

    Arguments:
        value: z, shape (N, D), in 64 bits.
        loc: :math:`\mu`, shape (K, D).
        weights: w, shape (N, K).

    Returns:
        A tensor of shape (K, D).

    Example:
        >>> one = torch.ones(1, 2, dtype=torch.float64)
        >>> weighted_squares(one, one + 2, one[:, :1])
        tensor([[4., 4.]], dtype=torch.float64)
    """
    of_value, of_loc = weights.mT @ value**2, loc**2 * weights.sum(0).unsqueeze(-1)
    squares = of_value - 2 * loc * (weights.mT @ value) + of_loc
    if _keeps_digits(squares, weights.abs().mT @ value**2 + loc**2 * weights.abs().sum(0).unsqueeze(-1)):
        return squares
    each = [torch.einsum("nkd,kn->kd", *both) for both in _one_by_one(value, loc, weights.mT)]
    return torch.cat(each)


def _one_by_one(value: Tensor, loc: Tensor, factors: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield squared differences and their factors for a few of the K locations at a time, about 32 MB."""
    size = max(1, 2**22 // max(1, value.numel()))
    for some, of_some in zip(loc.split(size), factors.split(size), strict=True):
        yield (value.unsqueeze(1) - some).square(), of_some


def _keeps_digits(difference: Tensor, terms: Tensor) -> bool:
    """Whether a difference of large terms is accurate to a part in a million.

    Checking this reads its values, for which a GPU would have to wait. On a GPU the slower way is always taken, as it
    costs little there.
    """
    if difference.device.type != "cpu":
        return False
    return bool((terms * torch.finfo(terms.dtype).eps <= 1e-6 * difference.abs()).all())


@squared_distances.register_fake
def _(value: Tensor, loc: Tensor, precision: Tensor) -> Tensor:  # noqa: ARG001
    return value.new_empty(len(value), len(loc))


@weighted_squares.register_fake
def _(value: Tensor, loc: Tensor, weights: Tensor) -> Tensor:  # noqa: ARG001
    return torch.empty_like(loc)


def _slopes(value: Tensor, loc: Tensor, weights: Tensor, precision: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of the sum of w p (z - mu)^2 for z and mu. Their terms are far smaller than the square's."""
    to_value = value * (weights @ precision) - weights @ (loc * precision)
    to_loc = (loc * weights.sum(0).unsqueeze(-1) - weights.mT @ value) * precision
    return 2 * to_value, 2 * to_loc


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:  # noqa: ARG001
    ctx.save_for_backward(*inputs)


def _distances_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    value, loc, precision = ctx.saved_tensors
    return *_slopes(value, loc, gradient, precision), weighted_squares(value, loc, gradient)


def _weighted_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    value, loc, weights = ctx.saved_tensors
    return *_slopes(value, loc, weights, gradient), squared_distances(value, loc, gradient)


squared_distances.register_autograd(_distances_backward, setup_context=_keep)
weighted_squares.register_autograd(_weighted_backward, setup_context=_keep)
