"""Priors of positive numbers."""

import math

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_vae.networks import positive
from pyro_vae.priors._prior import _Prior, above


class Exponential(_Prior):
    r"""Exponential prior with independent dimensions, of rate 1 or with learned rates.

    .. math:: p(z) = \prod_d \beta_d e^{-\beta_d z_d}, \qquad z_d > 0, \; \beta = 1 \text{ unless learned.}

    Arguments:
        latent_dim: number of latent dimensions D, at least 1.
        learned: learn the rates, starting from 1.

    Returns:
        ``forward()`` returns a distribution of batch shape () and event shape (D,).

    Raises:
        TypeError: where ``latent_dim`` is not an integer.
        ValueError: where ``latent_dim`` is below 1.

    Example:
        >>> Exponential(3)().mean
        tensor([1., 1., 1.])

    Reference:
        Vertes and Sahani, 2018, Flexible and Accurate Inference and Learning for Deep Generative Models.
    """

    zeros = ("log_rate",)
    log_rate: Tensor

    def forward(self) -> dist.TorchDistribution:
        return dist.Exponential(positive(self.log_rate)).to_event(1)


class Gamma(_Prior):
    r"""Gamma prior with independent dimensions, of rate 1 or with learned concentrations and rates.

    .. math:: p(z) = \prod_d \frac{\beta_d^{\alpha_d}}{\Gamma(\alpha_d)} z_d^{\alpha_d - 1} e^{-\beta_d z_d},
              \qquad z_d > 0, \; \beta = 1 \text{ unless learned.}

    Arguments:
        latent_dim: number of latent dimensions D, at least 1.
        concentration: :math:`\alpha`, above 0; 1 makes the prior exponential.
        learned: learn concentrations and rates, starting from ``concentration`` and 1.

    Returns:
        ``forward()`` returns a distribution of batch shape () and event shape (D,).

    Raises:
        TypeError: where ``latent_dim`` is not an integer.
        ValueError: where ``latent_dim`` is below 1, or the concentration is not above 0.

    Example:
        >>> Gamma(3, concentration=1.0)().mean
        tensor([1., 1., 1.])

    Reference:
        Figurnov, Mohamed and Mnih, 2018, Implicit Reparameterization Gradients, section 6.
    """

    zeros = ("log_rate",)
    log_concentration: Tensor
    log_rate: Tensor

    def __init__(self, latent_dim: int, concentration: float = 2.0, learned: bool = False) -> None:
        super().__init__(latent_dim, learned)
        start = math.log(above(concentration, 0, "the concentration of priors.Gamma"))
        self.hold("log_concentration", torch.full((latent_dim,), start))

    def forward(self) -> dist.TorchDistribution:
        return dist.Gamma(positive(self.log_concentration), positive(self.log_rate)).to_event(1)
