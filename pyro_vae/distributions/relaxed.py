"""One-hot variables with pathwise gradients: relaxed ones, and rounded ones that keep the relaxed gradient."""

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions.relaxed_categorical import ExpRelaxedCategorical

from pyro_vae.distributions.discrete import OneHotCategorical


class RelaxedOneHotCategorical(dist.RelaxedOneHotCategorical):
    r"""Gumbel-softmax distribution whose draws never underflow.

    .. math:: p(z) = \Gamma(K) \, \tau^{K - 1} \left( \sum_k \pi_k z_k^{-\tau} \right)^{-K}
              \prod_k \pi_k z_k^{-\tau - 1}

    At a low temperature entries of Pyro's draws underflow to 0, where the log-density is infinite and its gradient no
    number. Here every entry is at least the 3/4th power of the smallest positive number (1e-28 in float32), whose
    reciprocal leaves room for the gradient.

    Arguments:
        temperature: :math:`\tau`, a tensor without dimensions, above 0.
        logits: :math:`\log \pi` up to a constant, of shape (\*batch, K); or ``probs``.

    Returns:
        A distribution of batch shape (\*batch) and event shape (K,), on the simplex.

    Example:
        >>> q = RelaxedOneHotCategorical(torch.tensor(0.01), logits=torch.zeros(3))
        >>> bool(q.log_prob(q.sample((1000,))).isfinite().all())
        True

    Reference:
        Maddison, Mnih and Teh, 2017, The Concrete Distribution, definition 1; Jang, Gu and Poole, 2017, Categorical
        Reparameterization with Gumbel-Softmax, equation 3.
    """

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        return self.draw_of(self.base_dist.rsample(sample_shape))

    def draw_of(self, logits: Tensor) -> Tensor:
        """Return the draw whose logarithms are these, up to a constant."""
        # Torch's own draws are exponentials of large numbers, which at low temperatures do not add up to 1 in float32.
        return _inside(logits.softmax(-1))

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        return self.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        return super().log_prob(_inside(value))


class StraightThroughGumbelSoftmax(OneHotCategorical):
    r"""One-hot vectors whose gradients are those of Gumbel-softmax draws.

    .. math:: z = \mathrm{one\_hot}(\arg\max_k y_k), \qquad \frac{\partial z}{\partial \pi} :=
              \frac{\partial y}{\partial \pi}, \qquad y = \mathrm{softmax}((\log \pi + g) / \tau)

    By the Gumbel-max trick the draws are exactly those of the one-hot categorical, at every temperature, and its are
    ``log_prob`` and the closed-form KLs: a bound has its exact expectation. The gradients are biased, less so where
    what comes after is nearly linear between the vectors.

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

    def expand(self, batch_shape: torch.Size, _instance: Any = None) -> "StraightThroughGumbelSoftmax":
        new = self._get_checked_instance(StraightThroughGumbelSoftmax, _instance)
        new.relaxed = self.relaxed.expand(batch_shape)
        return super().expand(batch_shape, new)

    def rsample(self, sample_shape: torch.Size = torch.Size()) -> Tensor:  # noqa: B008
        return self.draw_of(self.relaxed.rsample(sample_shape))

    def draw_of(self, logits: Tensor) -> Tensor:
        """Return the draw whose relaxed draw has these logarithms, up to a constant."""
        soft = logits.softmax(-1)
        hard = torch.zeros_like(soft).scatter(-1, soft.argmax(-1, keepdim=True), 1.0)
        return hard + (soft - soft.detach())


def _inside(value: Tensor) -> Tensor:
    return value.clamp(min=torch.finfo(value.dtype).tiny ** 0.75)
