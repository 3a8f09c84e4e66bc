"""One-hot variables with pathwise gradients: relaxed ones, and rounded ones that keep the relaxed gradient."""

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.relaxed_categorical import ExpRelaxedCategorical

from pyro_vae.arguments import above
from pyro_vae.distributions.discrete import OneHotCategorical

COLDEST, WARMEST = 1e-3, 1e3
# Small enough that no decoder can tell it from 0, and large enough that second derivatives, of 2 / EDGE^2 and more, are
# finite in float32. It is the same in all precisions, so that codes can be converted from one to another.
EDGE = 1e-10


def as_temperature(value: float, name: str) -> float:
    """Return a temperature, or refuse it outside of 0.001 to 1,000, where float32 holds too few digits of the draws."""
    temperature = above(value, 0, name)
    if not COLDEST <= temperature <= WARMEST:
        raise ValueError(f"{name} must be from {COLDEST:g} to {WARMEST:g}, not {value!r}")
    return temperature


def with_logarithm(log_value: Tensor) -> Tensor:
    r"""Return numbers between 0 and 1 for their logarithms, so that `logarithm_of` can recover these, however small.

    .. math:: v = e^y \text{ for } e^y \ge c, \qquad v = \frac{c}{1 + \log c - y} \text{ below,} \qquad c = 10^{-10}

    A decoder cannot tell a number below c from 0. The function is increasing, and so is its slope.

    Arguments:
        log_value: any tensor, at most 0.

    Returns:
        A tensor of the same shape, above 0.

    Example:
        >>> y = torch.tensor([-0.5, -3000.0])
        >>> with_logarithm(y), logarithm_of(with_logarithm(y))
        (tensor([6.0653e-01, 3.3580e-14]), tensor([-5.0000e-01, -3.0000e+03]))
    """
    depth = (math.log(EDGE) - log_value).clamp(min=0)
    return log_value.clamp(min=math.log(EDGE)).exp() / (1 + depth)


def logarithm_of(value: Tensor) -> Tensor:
    """Return the logarithms from which `with_logarithm` made these numbers."""
    # EDGE is made a tensor because the derivative of a Python number over a tensor squares a reciprocal and overflows.
    depth = value.new_full((), EDGE) / value.clamp(max=EDGE) - 1
    return value.clamp(min=EDGE).log() - depth


class _Temperature(constraints.Constraint):
    """A single number from 0.001 to 1,000: torch would take several numbers as temperatures of the categories."""

    def check(self, value: Tensor) -> Tensor:
        return (value >= COLDEST) & (value <= WARMEST) & (value.dim() == 0)

    def __repr__(self) -> str:
        return f"of one number from {COLDEST:g} to {WARMEST:g}, without dimensions"


class KeptLogarithms(constraints.Constraint):
    """The simplex, with entries to be read by `logarithm_of`: other distributions would misread small ones."""

    event_dim = 1

    def check(self, value: Tensor) -> Tensor:
        # The tolerance allows for rounding in float32 when there are many entries.
        return (value > 0).all(-1) & ((value.sum(-1) - 1).abs() < 1e-4)

    def __repr__(self) -> str:
        return "the simplex of pyro_vae.distributions.RelaxedOneHotCategorical"


class RelaxedOneHotCategorical(dist.RelaxedOneHotCategorical):
    r"""Gumbel-softmax distribution whose draws keep their logarithms, so that none underflows.

    .. math:: p(z) = \Gamma(K) \, \tau^{K - 1} \left( \sum_k \pi_k z_k^{-\tau} \right)^{-K}
              \prod_k \pi_k z_k^{-\tau - 1}

    At a low temperature most entries of z are below the smallest positive number, where Pyro's log-density is infinite.
    Here an entry below 1e-10 is stored in terms of its logarithm:

    .. math:: v = \frac{c}{1 + \log(c / z)} \text{ in place of } z < c = 10^{-10}

    ``log_prob`` recovers z from it, and is right at every temperature; to a decoder, v and z are both 0. Both
    distributions of a KL must read codes in this way: a prior of another class is refused.

    Arguments:
        temperature: :math:`\tau`, a tensor without dimensions, from 0.001 to 1,000.
        logits: :math:`\log \pi` up to a constant, of shape (\*batch, K); or ``probs``.

    Returns:
        A distribution of batch shape (\*batch) and event shape (K,), on the simplex.

    Raises:
        ValueError: if validation is on, and the temperature has dimensions or is out of its range.

    Example:
        >>> q = RelaxedOneHotCategorical(torch.tensor(0.01), logits=torch.zeros(3))
        >>> bool(q.log_prob(q.sample((1000,))).isfinite().all())
        True

    Reference:
        Maddison, Mnih and Teh, 2017, The Concrete Distribution, definition 1 and appendix C.3; Jang, Gu and Poole,
        2017, Categorical Reparameterization with Gumbel-Softmax, equation 3.
    """

    arg_constraints = dist.RelaxedOneHotCategorical.arg_constraints | {"temperature": _Temperature()}
    support = KeptLogarithms()

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        return self.draw_of(self.base_dist.rsample(sample_shape))

    def draw_of(self, logits: Tensor) -> Tensor:
        """Return the draw that has these logarithms, up to a constant."""
        # Torch's own draws are exponentials of large numbers, which at low temperatures do not add up to 1 in float32.
        return with_logarithm(logits.log_softmax(-1))

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        return self.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        log_value = logarithm_of(value)
        return self.base_dist.log_prob(log_value) - log_value.sum(-1)


class StraightThroughGumbelSoftmax(OneHotCategorical):
    r"""One-hot vectors whose gradients are those of Gumbel-softmax draws.

    .. math:: z = \mathrm{one\_hot}(\arg\max_k y_k), \qquad \frac{\partial z}{\partial \pi} :=
              \frac{\partial y}{\partial \pi}, \qquad y = \mathrm{softmax}((\log \pi + g) / \tau)

    By the Gumbel-max trick the draws have exactly the one-hot categorical distribution, at every temperature.
    ``log_prob`` and the closed-form KLs are those of that distribution too, so that the expectation of a bound is
    exact. The gradients are biased, but less so if the function of z is nearly linear between the one-hot vectors.

    ``log_prob`` of its own draw has the gradient of that draw alone, and none by the logits directly. With one particle
    the latter is 0 in the mean, and only noise; with several it pushes the logits away from the draws of the largest
    weights, by about as much as the gradient of the draws, which is biased, pulls them there. The draws of another
    distribution, such as those of an encoder under a learned prior, have both gradients.

    Arguments:
        temperature: :math:`\tau`, a tensor without dimensions, above 0.
        logits: :math:`\log \pi` up to a constant, of shape (\*batch, K).

    Returns:
        A distribution of batch shape (\*batch) and event shape (K,), on one-hot vectors.

    Example:
        >>> logits = torch.zeros(3, requires_grad=True)
        >>> z = StraightThroughGumbelSoftmax(torch.tensor(0.5), logits).rsample()
        >>> z.sum().item(), z.requires_grad
        (1.0, True)

    Reference:
        Jang, Gu and Poole, 2017, Categorical Reparameterization with Gumbel-Softmax, section 2.2; Bengio, Leonard and
        Courville, 2013, Estimating or Propagating Gradients Through Stochastic Neurons, section 4.
    """

    has_rsample = True

    def __init__(self, temperature: Tensor, logits: Tensor, validate_args: bool | None = None) -> None:
        super().__init__(logits=logits, validate_args=validate_args)
        self.relaxed = ExpRelaxedCategorical(temperature, logits=logits, validate_args=False)
        self._mark = object()  # of the draws of this distribution and of its expansions

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> "StraightThroughGumbelSoftmax":
        new = self._get_checked_instance(StraightThroughGumbelSoftmax, _instance)
        new.relaxed, new._mark = self.relaxed.expand(batch_shape), self._mark
        return super().expand(batch_shape, new)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        return self.draw_of(self.relaxed.rsample(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        if value.requires_grad and getattr(value, "_mark", None) is self._mark:  # its gradient leads to the logits
            return OneHotCategorical(logits=self.logits.detach(), validate_args=self._validate_args).log_prob(value)
        return super().log_prob(value)

    def draw_of(self, logits: Tensor) -> Tensor:
        """Return the one-hot draw for a relaxed draw that has these logarithms, up to a constant."""
        soft = logits.softmax(-1)
        hard = torch.zeros_like(soft).scatter(-1, soft.argmax(-1, keepdim=True), 1.0)
        draw = hard + (soft - soft.detach())
        draw._mark = self._mark  # type: ignore[attr-defined]
        return draw
