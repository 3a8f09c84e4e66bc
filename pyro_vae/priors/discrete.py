"""Priors of discrete variables, and a continuous relaxation of one."""

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_vae import distributions
from pyro_vae.arguments import as_size
from pyro_vae.distributions.relaxed import as_temperature
from pyro_vae.priors._prior import _Prior


class Bernoulli(_Prior):
    r"""Prior of independent binary variables, fair or with learned probabilities.

    .. math:: p(z) = \prod_d \pi_d^{z_d} (1 - \pi_d)^{1 - z_d}, \qquad \pi = 1/2 \text{ unless learned.}

    Arguments:
        latent_dim: number of binary variables D, at least 1.
        learned: learn the logits of the probabilities, starting from 0.

    Returns:
        ``forward()`` returns a distribution of batch shape () and event shape (D,).

    Raises:
        TypeError: if ``latent_dim`` is not an integer.
        ValueError: if ``latent_dim`` is below 1.

    Example:
        >>> Bernoulli(3)().mean
        tensor([0.5000, 0.5000, 0.5000])

    Reference:
        Maddison, Mnih and Teh, 2017, The Concrete Distribution, section 5.
    """

    zeros = ("logits",)
    logits: Tensor

    def forward(self) -> dist.TorchDistribution:
        return dist.Bernoulli(logits=self.logits).to_event(1)


class OneHotCategorical(_Prior):
    r"""Prior of independent categorical variables as one-hot vectors, uniform or with learned probabilities.

    .. math:: p(z) = \prod_d \prod_k \pi_{dk}^{z_{dk}}, \qquad \pi = 1/K \text{ unless learned.}

    Arguments:
        latent_dim: number of categorical variables D, at least 1.
        categories: number of categories K of each, at least 2.
        learned: learn the logits of the probabilities, starting from 0.

    Returns:
        ``forward()`` returns a distribution of batch shape () and event shape (D, K).

    Raises:
        TypeError: if ``latent_dim`` or ``categories`` is not an integer.
        ValueError: if ``latent_dim`` is below 1 or ``categories`` below 2.

    Example:
        >>> OneHotCategorical(20, categories=10)().event_shape
        torch.Size([20, 10])

    Reference:
        Jang, Gu and Poole, 2017, Categorical Reparameterization with Gumbel-Softmax, section 4.
    """

    logits: Tensor

    def __init__(self, latent_dim: int, categories: int = 10, learned: bool = False) -> None:
        super().__init__(latent_dim, learned)
        self.categories = as_categories(categories)
        self.hold("logits", torch.zeros(latent_dim, categories))

    def forward(self) -> dist.TorchDistribution:
        return distributions.OneHotCategorical(logits=self.logits).to_event(1)


class RelaxedOneHotCategorical(_Prior):
    r"""Prior of independent Gumbel-softmax variables: points of a simplex, near its corners where it is cold.

    .. math:: p(z) = \prod_d (K - 1)! \, \tau^{K - 1}
              \prod_k \frac{\pi_{dk} z_{dk}^{-\tau - 1}}{\sum_j \pi_{dj} z_{dj}^{-\tau}},
              \qquad \pi = 1/K \text{ unless learned.}

    Arguments:
        latent_dim: number of variables D, at least 1.
        categories: number of categories K of each, at least 2.
        temperature: :math:`\tau`, from 0.001 to 1,000; towards 0 the variables become one-hot.
        learned: learn the logits of the probabilities, starting from 0.

    Returns:
        ``forward()`` returns a distribution of batch shape () and event shape (D, K).

    Raises:
        TypeError: if ``latent_dim`` or ``categories`` is not an integer.
        ValueError: if ``latent_dim`` is below 1, ``categories`` below 2 or the temperature out of its range.

    Example:
        >>> RelaxedOneHotCategorical(20, categories=10)().event_shape
        torch.Size([20, 10])

    Reference:
        Maddison, Mnih and Teh, 2017, The Concrete Distribution, equation 10.
        Jang, Gu and Poole, 2017, Categorical Reparameterization with Gumbel-Softmax, equation 2.
    """

    logits: Tensor

    def __init__(self, latent_dim: int, categories: int = 10, temperature: float = 0.67, learned: bool = False) -> None:
        super().__init__(latent_dim, learned)
        self.temperature = as_temperature(temperature, "the temperature of priors.RelaxedOneHotCategorical")
        self.categories = as_categories(categories)
        self.hold("logits", torch.zeros(latent_dim, categories))

    def forward(self) -> dist.TorchDistribution:
        temperature = self.logits.new_tensor(self.temperature)
        return distributions.RelaxedOneHotCategorical(temperature, logits=self.logits).to_event(1)


def as_categories(categories: int) -> int:
    """Return a number of categories, or refuse one below 2."""
    if as_size(categories, "categories") < 2:
        raise ValueError(f"categories must be at least 2, not {categories}: a single one leaves nothing to choose")
    return categories
