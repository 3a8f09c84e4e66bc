"""Discrete distributions, and several discrete variables at once."""

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

from pyro_vae.distributions.wrappers import expanded
from pyro_vae.networks import Sizes, as_shape

MOST_CODES = 4096


class Categorical(dist.Categorical):
    """Categorical distribution whose values 0 to K - 1 are floats, so that it has a mean.

    Example:
        >>> Categorical(probs=torch.tensor([0.5, 0.0, 0.5])).mean
        tensor(1.)
    """

    @property
    def mean(self) -> Tensor:
        return self.probs @ self._numbers()

    @property
    def variance(self) -> Tensor:
        return (self.probs * (self._numbers() - self.mean.unsqueeze(-1)) ** 2).sum(-1)

    @property
    def mode(self) -> Tensor:
        return super().mode.to(self._param.dtype)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008 (as torch has it)
        return super().sample(sample_shape).to(self._param.dtype)

    def _numbers(self) -> Tensor:
        return torch.arange(self._num_events, dtype=self._param.dtype, device=self._param.device)


class EnumerableIndependent(dist.Independent):
    r"""Independent discrete variables as one event, whose joint values can be enumerated.

    .. math:: \mathbb{E}_{q(z)} f(z) = \sum_{z \in \{1, \dots, K\}^D} q(z) f(z)

    Pyro enumerates one variable per sample site and refuses an event of several. With this class a site of D variables
    of K values each takes part in ``pyro.infer.TraceEnum_ELBO`` as a single variable of :math:`K^D` values.

    Arguments:
        base_distribution: a distribution of one variable that can be enumerated.
        reinterpreted_batch_ndims: how many of its rightmost batch dimensions become event dimensions.

    Returns:
        A distribution equal to ``base_distribution.to_event(reinterpreted_batch_ndims)``.

    Raises:
        NotImplementedError: in ``enumerate_support``, if there are more than 4,096 joint values.

    Example:
        >>> EnumerableIndependent(dist.Bernoulli(logits=torch.zeros(2)), 1).enumerate_support()
        tensor([[0., 0.],
                [1., 0.],
                [0., 1.],
                [1., 1.]])

    Reference:
        Kingma, Mohamed, Jimenez Rezende and Welling, 2014, Semi-supervised Learning with Deep Generative Models,
        equation 7 (the sum over all values of a discrete code).
    """

    @property
    def has_enumerate_support(self) -> bool:
        return bool(self.base_dist.has_enumerate_support)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        values = self.base_dist.enumerate_support(expand=False)
        values = values.reshape(-1, *self.base_dist.event_shape)
        own = self.event_shape[: self.reinterpreted_batch_ndims]
        joint = len(values) ** own.numel()
        if joint > MOST_CODES:
            raise NotImplementedError(
                f"{own.numel()} variables of {len(values)} values have {joint} joint values, and at most "
                f"{MOST_CODES} are enumerated: take fewer variables, or draw samples (Trace_ELBO)"
            )
        # The digits of 0, 1, ..., joint - 1 in base K: one row per joint value.
        places = len(values) ** torch.arange(own.numel(), device=values.device)
        digits = torch.arange(joint, device=values.device)[:, None] // places % len(values)
        codes = values[digits].reshape(joint, *[1] * len(self.batch_shape), *self.event_shape)
        return codes.expand(joint, *self.batch_shape, *self.event_shape) if expand else codes


class OneHotCategorical(dist.OneHotCategorical):
    """Categorical distribution of one-hot vectors, whose sampling can be recorded by `pyro_vae.runtime.engine`.

    Torch's own sampling reads numbers out of tensors to check their range (seen in torch 2.13), which cannot be
    recorded. Nor has torch's ``log_prob`` a gradient by the value, so that straight-through draws would be trained
    without the prior and the entropy; here it is the sum of value times log-probability.

    Arguments:
        probs: probabilities, of shape (\\*batch, K); or
        logits: their logarithms up to a constant.

    Returns:
        A distribution of batch shape (\\*batch) and event shape (K,).

    Example:
        >>> OneHotCategorical(torch.tensor([0.0, 1.0])).sample()
        tensor([0., 1.])
    """

    @property
    def variance(self) -> Tensor:
        # The other probabilities are summed, because 1 - probs rounds to 0 if one category has nearly all.
        others = 1 - torch.eye(self.event_shape[0], dtype=self.probs.dtype, device=self.probs.device)
        return self.probs * (self.probs @ others)

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        rows = torch.eye(self.event_shape[0], dtype=self.logits.dtype, device=self.logits.device)
        return rows[self._categorical.sample(sample_shape)]

    def log_prob(self, value: Tensor) -> Tensor:
        log_prob = super().log_prob(value)
        if not value.requires_grad:
            return log_prob
        finite = self.logits.detach().clamp(min=torch.finfo(self.logits.dtype).min)
        return log_prob + ((value - value.detach()) * finite).sum(-1)


class _Grid(constraints.Constraint):
    """The multiples of 1 / steps in [0, 1], with a tolerance of 1e-4."""

    is_discrete = True
    event_dim = 0

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.hint = f"scale the data to [0, 1] and round them to it ((x * {steps}).round() / {steps})"

    def check(self, value: Tensor) -> Tensor:
        index = (value * self.steps).round()
        return (index >= 0) & (index <= self.steps) & ((value - index / self.steps).abs() <= 1e-4)

    def __repr__(self) -> str:
        return f"of the multiples of 1/{self.steps} in [0, 1]"


class DiscretizedLogistic(dist.TorchDistribution):
    r"""Logistic distribution, discretized to bins around :math:`0, 1/n, \dots, 1`, where :math:`n = 2^b - 1`.

    .. math:: P(x) = \sigma(u) - \sigma(l) = \sigma(u) \, \sigma(-l) \, (1 - e^{l - u}), \quad
              u, l = \frac{x \pm 1 / 2n - \mu}{s},

    where the bin of x = 0 has no lower end l, and the bin of x = 1 no upper end u. The product loses no digits, however
    far away the mean and however small the scale.

    Arguments:
        loc: the mean :math:`\mu` of the logistic distribution, in units of x.
        scale: its scale s, above 0.
        bits: number of bits b.

    Example:
        >>> logistic = DiscretizedLogistic(torch.tensor(0.3), torch.tensor(0.1), bits=2)
        >>> logistic.log_prob(torch.tensor([0.0, 1 / 3, 2 / 3, 1.0])).exp().sum().round(decimals=4)
        tensor(1.)

    Reference:
        Salimans, Karpathy, Chen and Kingma, 2017, PixelCNN++, equation 2.
    """

    arg_constraints = {"loc": constraints.real, "scale": constraints.positive}  # noqa: RUF012 (as Pyro has it)

    def __init__(self, loc: Tensor, scale: Tensor, bits: int = 8, validate_args: bool | None = None) -> None:
        shape = torch.broadcast_shapes(loc.shape, scale.shape)
        self.loc, self.scale, self.steps = loc.expand(shape), scale.expand(shape), 2**bits - 1
        super().__init__(shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:
        return _Grid(self.steps)

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> "DiscretizedLogistic":
        return expanded(self, batch_shape, loc=self.loc.expand(batch_shape), scale=self.scale.expand(batch_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        # In units of bins, so that edges are exact numbers, and neighbouring bins share the same edge.
        index, center, scale = (value * self.steps).round(), self.loc * self.steps, self.scale * self.steps
        upper, lower = (index + 0.5 - center) / scale, (index - 0.5 - center) / scale
        up_to, from_on = logsigmoid(upper), logsigmoid(-lower)
        between = up_to + from_on + (-torch.expm1(-1 / scale)).log()
        return torch.where(index <= 0, up_to, torch.where(index >= self.steps, from_on, between))

    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008 (as torch has it)
        with torch.no_grad():
            uniform = torch.rand(self._extended_shape(sample_shape), dtype=self.loc.dtype, device=self.loc.device)
            # Relative to the bin edge nearest to the mean: added to the mean itself, a small scale would be lost.
            center = self.loc * self.steps
            lower = center.floor()
            above_edge = center - lower - 0.5 + self.scale * self.steps * uniform.logit()
            return (lower + 1 + above_edge.floor()).clamp(0, self.steps) / self.steps

    @property
    def mean(self) -> Tensor:
        # The mean of a count is the sum of its tail probabilities, added one by one: a tensor of all would be large.
        center, scale, total = self.loc * self.steps, self.scale * self.steps, torch.zeros_like(self.loc)
        for edge in range(self.steps):
            total = total + ((center - edge - 0.5) / scale).sigmoid()
        return total / self.steps


def bits_per_dimension(nats: float, shape: Sizes) -> float:
    """Convert nats per datum to bits per entry of a datum.

    Arguments:
        nats: a negative log-probability or a bound on it, in nats per datum.
        shape: the shape of one datum.

    Returns:
        The nats divided by log 2 and by the number of entries.

    Raises:
        TypeError: for sizes that are not integers.
        ValueError: for an empty shape or a size below 1.

    Example:
        >>> round(bits_per_dimension(784 * math.log(256), (1, 28, 28)), 6)
        8.0
    """
    return nats / (math.log(2) * math.prod(as_shape(shape)))
