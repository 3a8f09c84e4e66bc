"""Flows whose transformations are conditioned on a context."""

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Transform, constraints

from pyro_vae.distributions.flow import zuko
from pyro_vae.distributions.planar import Planar
from pyro_vae.networks import soft_clip

_BINS = 8  # of a spline


class ConditionalFlow(dist.TransformedDistribution):
    """A base distribution followed by transformations, whose log-probability has the right gradient for any value.

    A transformation of ``cache_size`` 1 remembers where its last output came from, which saves the inverse of a draw.
    But of a draw without gradient it remembers a constant, and the inverse of that value still depends on the
    parameters: then it is computed.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        known = value.requires_grad or not torch.is_grad_enabled()
        return super().log_prob(value if known else value.clone())  # a copy is not what the cache remembers


class _Remembering(Transform):
    """A transformation of zuko's with torch's cache, and with the determinant kept that comes with each output."""

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, transform: Any, cache_size: int = 0) -> None:
        super().__init__(cache_size)
        self.transform = transform
        self._last: tuple[Tensor | None, Tensor | None] = (None, None)

    def _call(self, x: Tensor) -> Tensor:
        y, log_slope = self.transform.call_and_ladj(x)
        self._last = (x, log_slope)
        return y

    def _inverse(self, y: Tensor) -> Tensor:
        return self.transform.inv(y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        last, log_slope = self._last
        return log_slope if last is x and log_slope is not None else self.transform.log_abs_det_jacobian(x, y)


class ConditionalAutoregressive(nn.Module):
    r"""Masked autoregressive transformation with a context, the identity at the start.

    .. math:: f_d(v) = \tau(v_d; h_d(v_{<d}, c))

    ``"IAF"``: :math:`\tau` is affine, one pass of the network h draws and D passes invert. ``"MAF"``: the inverse of
    the same, so that D passes draw and one inverts. ``"NSF"``: as IAF, :math:`\tau` being a monotonic
    rational-quadratic spline of 8 bins on [-5, 5], and the identity outside.

    Arguments:
        kind: "IAF", "MAF" or "NSF".
        features: number of dimensions D, at least 1; with one, h is a network of the context alone.
        context: number of entries of the context, at least 1.
        hidden: width of the two hidden layers of h, at least 1.
        reverse: take the dimensions in descending order.

    Returns:
        ``forward(context)``, context of shape (\*batch, context), returns a transformation of (\*batch, D).

    Example:
        >>> ConditionalAutoregressive("IAF", 3, context=4, hidden=16)(torch.zeros(4))(torch.ones(3)).tolist()
        [1.0, 1.0, 1.0]

    Reference:
        Kingma et al., 2016, Improved Variational Inference with Inverse Autoregressive Flow, equation 10;
        Papamakarios, Pavlakou and Murray, 2017, Masked Autoregressive Flow for Density Estimation, equations 3 to 5;
        Durkan et al., 2019, Neural Spline Flows, equations 4 to 8.
    """

    def __init__(self, kind: str, features: int, context: int, hidden: int, reverse: bool = False) -> None:
        super().__init__()
        self.kind = kind
        order = torch.arange(features).flip(0) if reverse else torch.arange(features)
        self.layer = _masked(features, context, order, (hidden, hidden), spline=kind == "NSF")
        nn.init.zeros_(self.layer.hyper[-1].weight)
        nn.init.zeros_(self.layer.hyper[-1].bias)

    def forward(self, context: Tensor) -> Transform:
        transform = _Remembering(self.layer(soft_clip(context)), cache_size=1)
        return transform.inv if self.kind == "MAF" else transform


class ConditionalPlanar(nn.Module):
    r"""Planar transformation whose w, u and b are affine functions of a context, the identity at the start.

    Arguments:
        features: number of dimensions D, at least 1.
        context: number of entries of the context, at least 1.

    Returns:
        ``forward(context)``, context of shape (\*batch, context), returns a `Planar` of (\*batch, D).

    Example:
        >>> ConditionalPlanar(3, context=4)(torch.zeros(4))(torch.ones(3)).tolist()
        [1.0, 1.0, 1.0]

    Reference:
        Rezende and Mohamed, 2015, Variational Inference with Normalizing Flows, section 4.1.
    """

    def __init__(self, features: int, context: int) -> None:
        super().__init__()
        self.features = features
        self.parameters_of = nn.Linear(context, 2 * features + 1)
        nn.init.zeros_(self.parameters_of.weight)
        # With u and w both 0 neither would have a gradient.
        w = torch.randn(features) / math.sqrt(features)
        self.parameters_of.bias.data = torch.cat([w, torch.zeros(features + 1)])

    def forward(self, context: Tensor) -> Planar:
        w, u, b = soft_clip(self.parameters_of(soft_clip(context))).split([self.features, self.features, 1], -1)
        return Planar(w, u, b.squeeze(-1), cache_size=1)


def _masked(features: int, context: int, order: Tensor, hidden: tuple[int, ...], spline: bool) -> Any:
    flows, transforms = zuko().flows, zuko().transforms
    univariate = transforms.MonotonicRQSTransform if spline else transforms.MonotonicAffineTransform
    shapes = [(_BINS,), (_BINS,), (_BINS - 1,)] if spline else [(), ()]
    return flows.autoregressive.MaskedAutoregressiveTransform(
        features, context, order=order, univariate=univariate, shapes=shapes, hidden_features=hidden
    )
