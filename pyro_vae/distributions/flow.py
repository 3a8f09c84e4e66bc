"""Normalizing flows: those of zuko, and those whose transformations are conditioned on a context."""

import math
from types import ModuleType
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Transform, constraints
from torch.nn.functional import softplus

from pyro_vae.distributions.wrappers import expanded
from pyro_vae.networks import soft_clip

_BINS = 8  # number of bins of a spline
_STEEPEST = 0.999  # instead of 1, so that the derivative along w stays above 0.001, and that of the inverse finite


class Planar(Transform):
    r"""Planar transformation: it adds a ridge function of :math:`w^\top z`, in the direction u.

    .. math:: f(z) = z + \hat u \tanh(w^\top z + b), \qquad
              \log\left|\det \frac{\partial f}{\partial z}\right| =
              \log\left(1 + w^\top \hat u \, (1 - \tanh^2(w^\top z + b))\right)

    It is invertible if :math:`w^\top \hat u \ge -1`. Therefore :math:`\hat u` is u with its part along w replaced:

    .. math:: \hat u = u + (m(w^\top u) - w^\top u) \frac{w}{\|w\|^2}, \qquad
              m(v) = 0.999 \, (\log(1 + (e - 1) e^v) - 1)

    Unlike the paper's, this m has :math:`m(0) = 0`, so that f is the identity if u is 0. The inverse solves one
    increasing equation for :math:`w^\top z` by bisection.

    Arguments:
        w: direction of the input, shape (\*batch, D).
        u: direction of the output before the correction, shape (\*batch, D).
        b: offset, shape (\*batch,).
        cache_size: 1 to keep the last input, so that the inverse of its output needs no computation, or 0.

    Example:
        >>> f = Planar(torch.ones(2), torch.ones(2), torch.tensor(0.0))
        >>> f.inv(f(torch.tensor([0.5, -1.0])).clone())
        tensor([ 0.5000, -1.0000])

    Reference:
        Rezende and Mohamed, 2015, Variational Inference with Normalizing Flows, equations 10 to 12 and appendix A.1.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, w: Tensor, u: Tensor, b: Tensor, cache_size: int = 0) -> None:
        super().__init__(cache_size)
        along = (w * u).sum(-1)
        self.slope = _STEEPEST * (softplus(along + math.log(math.e - 1)) - 1)
        square = (w**2).sum(-1).clamp(min=torch.finfo(w.dtype).eps)
        self.w, self.b = w, b
        self.u = u + ((self.slope - along) / square).unsqueeze(-1) * w

    def _call(self, x: Tensor) -> Tensor:
        return x + self.u * self._ridge((self.w * x).sum(-1)).unsqueeze(-1)

    def _inverse(self, y: Tensor) -> Tensor:
        projection = self._solve((self.w * y).sum(-1))
        return y - self.u * self._ridge(projection).unsqueeze(-1)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        return (self.slope * (1 - self._ridge((self.w * x).sum(-1)) ** 2)).log1p()

    def _ridge(self, projection: Tensor) -> Tensor:
        return (projection + self.b).tanh()

    def _solve(self, target: Tensor) -> Tensor:
        """Return p with p + slope * tanh(p + b) = target, with the right first and second derivatives."""
        with torch.no_grad():
            low, high = target - self.slope.abs(), target + self.slope.abs()
            for _ in range(60):
                middle = (low + high) / 2
                above = middle + self.slope * self._ridge(middle) > target
                low, high = torch.where(above, low, middle), torch.where(above, middle, high)
            root = (low + high) / 2
        # Newton steps hardly change the value, but one gives it the first derivative of the root, and two the second.
        for _ in range(2):
            derivative = 1 + self.slope * (1 - self._ridge(root) ** 2)
            root = root - (root + self.slope * self._ridge(root) - target) / derivative
        return root


def zuko() -> ModuleType:
    """Return the package zuko.

    Raises:
        ImportError: if it is not installed; the message has the command that installs it.

    Example:
        >>> zuko().flows.MAF(3)().event_shape
        torch.Size([3])
    """
    # Importing zuko switches off the validation of all distributions in the process, so it is restored at once.
    validated = Distribution._validate_args
    try:
        import zuko
    except ImportError as error:
        raise ImportError("flows need the package zuko: python -m pip install zuko") from error
    finally:
        Distribution.set_default_validate_args(validated)
    return zuko


class ZukoFlow(dist.TorchDistribution):
    r"""A flow of zuko as a Pyro distribution on :math:`\mathbb{R}^D`.

    .. math:: \log p(x) = \log p_0(f(x)) + \log \left| \det \frac{\partial f(x)}{\partial x} \right|

    One pass computes a draw and its log-probability. The last ones are kept, so that scoring this draw, as an ELBO does
    with the guide's draws, needs no second pass, which is slow for some flows. Build a new object at each call.

    Arguments:
        flow: what a flow of zuko returns when it is called, with a context or without one.

    Example:
        >>> ZukoFlow(zuko().flows.NSF(3, context=2)(torch.zeros(5, 2))).sample().shape
        torch.Size([5, 3])

    Reference:
        Rozet et al., 2022, Zuko: Normalizing Flows in PyTorch.
        Papamakarios et al., 2021, Normalizing Flows for Probabilistic Modeling and Inference, equation 2.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, flow: Distribution, validate_args: bool | None = None) -> None:
        self._flow = flow
        self._drawn: tuple[Tensor, Tensor] | None = None
        super().__init__(flow.batch_shape, flow.event_shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "ZukoFlow":
        return expanded(self, batch_shape, _flow=self._flow.expand(torch.Size(batch_shape)), _drawn=None)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        value, log_prob = self._flow.rsample_and_log_prob(torch.Size(sample_shape))  # type: ignore[attr-defined]
        # Under no_grad, as in `sample`, the log-probability has no gradient, but a later caller may need one.
        self._drawn = (value, log_prob) if torch.is_grad_enabled() else None
        return value

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        if self._drawn is not None and value is self._drawn[0]:
            return self._drawn[1]
        return self._flow.log_prob(value)


class ConditionalFlow(dist.TransformedDistribution):
    """A base distribution followed by transformations, whose log-probability has the right gradient for any value.

    A transformation with ``cache_size`` 1 remembers the input of its last output, which saves inverting a draw. But if
    the draw has no gradient, the remembered input is a constant, whereas the inverse depends on the parameters. In that
    case the inverse is computed.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        shape = torch.broadcast_shapes(value.shape, self.batch_shape + self.event_shape)
        if value.shape != shape:  # no draw of this distribution; transformations of zuko do not broadcast all inputs
            return super().log_prob(value.expand(shape))
        known = value.requires_grad or not torch.is_grad_enabled()
        return super().log_prob(value if known else value.clone())  # the cache does not know a copy


class _Remembering(Transform):
    """A transformation of zuko with torch's cache, which also keeps the log-determinant of its last output."""

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
    r"""Masked autoregressive transformation with a context; it starts as the identity.

    .. math:: f_d(v) = \tau(v_d; h_d(v_{<d}, c))

    With ``"IAF"``, :math:`\tau` is affine; a draw takes one pass of the network h, and the inverse takes D. ``"MAF"``
    is the inverse of that, so that a draw takes D passes and the inverse one. ``"NSF"`` is like IAF, but :math:`\tau`
    is a monotonic rational-quadratic spline with 8 bins on [-5, 5], and the identity outside.

    Arguments:
        kind: "IAF", "MAF" or "NSF".
        features: number of dimensions D, at least 1; with one dimension, the input of h is only the context.
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
    r"""Planar transformation whose w, u and b are affine functions of a context; it starts as the identity.

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
        # If u and w were both 0, neither would have a gradient.
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
