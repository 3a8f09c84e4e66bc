"""Relaxed one-hot variables that stay away from the simplex's edges."""

import pyro.distributions as dist
import torch
from pyro.distributions.relaxed_straight_through import QuantizeCategorical
from torch import Tensor


class RelaxedOneHotCategorical(dist.RelaxedOneHotCategorical):
    r"""Gumbel-softmax distribution whose draws never underflow.

    .. math:: p(z) = \Gamma(K) \, \tau^{K - 1} \left( \sum_k \pi_k z_k^{-\tau} \right)^{-K}
              \prod_k \pi_k z_k^{-\tau - 1}

    At a low temperature entries of Pyro's draws underflow to 0, where the log-density is infinite and its gradient no
    number. Here every entry is at least the 3/4th power of the smallest positive number (1e-28 in float32), whose
    reciprocal leaves room for the gradient. A value that was quantized is measured at what it was before.

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
        return super().log_prob(_inside(getattr(value, "_unquantize", value)))


class RelaxedOneHotCategoricalStraightThrough(RelaxedOneHotCategorical):
    """Gumbel-softmax distribution whose draws are rounded to one-hot vectors, with the gradients of the unrounded.

    Pyro's class of this name moves draws by 1e-7 per category, so that from about 10 categories on they fail the
    validation of the simplex in float32.

    Arguments:
        temperature: a tensor without dimensions, above 0.
        logits: log-probabilities up to a constant, of shape (\\*batch, K); or ``probs``.

    Returns:
        A distribution of batch shape (\\*batch) and event shape (K,). Its ``log_prob`` is the density of what a draw
        was before it was rounded, which the draw remembers.

    Example:
        >>> RelaxedOneHotCategoricalStraightThrough(torch.tensor(0.5), logits=torch.zeros(3)).rsample().sum()
        tensor(1.)

    Reference:
        Jang, Gu and Poole, 2017, Categorical Reparameterization with Gumbel-Softmax, section 2.2.
    """

    def draw_of(self, logits: Tensor) -> Tensor:
        hard: Tensor = QuantizeCategorical.apply(super().draw_of(logits))
        return hard


def _inside(value: Tensor) -> Tensor:
    return value.clamp(min=torch.finfo(value.dtype).tiny ** 0.75)
