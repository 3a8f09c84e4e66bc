"""Priors of numbers between 0 and 1: independent, or shares of a whole."""

import math

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_vae.networks import positive
from pyro_vae.priors._prior import _Prior, above


class Beta(_Prior):
    r"""Beta prior with independent dimensions, symmetric or with learned concentrations.

    .. math:: p(z) = \prod_d \frac{\Gamma(\alpha_d + \beta_d)}{\Gamma(\alpha_d) \Gamma(\beta_d)}
              z_d^{\alpha_d - 1} (1 - z_d)^{\beta_d - 1}, \qquad 0 < z_d < 1, \; \alpha = \beta \text{ unless learned.}

    Arguments:
        latent_dim: number of latent dimensions D, at least 1.
        concentration: :math:`\alpha` and :math:`\beta`, above 0; 1 makes the prior uniform.
        learned: learn the concentrations, starting from ``concentration``.

    Returns:
        ``forward()`` returns a distribution of batch shape () and event shape (D,).

    Raises:
        TypeError: where ``latent_dim`` is not an integer.
        ValueError: where ``latent_dim`` is below 1, or the concentration is not above 0.

    Example:
        >>> Beta(2)().mean
        tensor([0.5000, 0.5000])

    Reference:
        Figurnov, Mohamed and Mnih, 2018, Implicit Reparameterization Gradients, section 6.
    """

    log_concentrations: Tensor

    def __init__(self, latent_dim: int, concentration: float = 1.0, learned: bool = False) -> None:
        super().__init__(latent_dim, learned)
        start = math.log(above(concentration, 0, "the concentration of priors.Beta"))
        self.hold("log_concentrations", torch.full((2, latent_dim), start))

    def forward(self) -> dist.TorchDistribution:
        return dist.Beta(*positive(self.log_concentrations)).to_event(1)


class Dirichlet(_Prior):
    r"""Dirichlet prior: positive shares that add up to 1, symmetric or with learned concentrations.

    .. math:: p(z) = \frac{\Gamma(\sum_d \alpha_d)}{\prod_d \Gamma(\alpha_d)} \prod_d z_d^{\alpha_d - 1},
              \qquad z_d > 0, \; \sum_d z_d = 1

    Arguments:
        latent_dim: number of shares D, at least 2.
        concentration: :math:`\alpha`, above 0: 1 makes the prior uniform, less than 1 makes it sparse.
        learned: learn the concentrations, starting from ``concentration``.

    Returns:
        ``forward()`` returns a distribution of batch shape () and event shape (D,).

    Raises:
        TypeError: where ``latent_dim`` is not an integer.
        ValueError: where ``latent_dim`` is below 2, or the concentration is not above 0.

    Example:
        >>> Dirichlet(4)().mean
        tensor([0.2500, 0.2500, 0.2500, 0.2500])

    Reference:
        Joo, Lee, Park and Moon, 2020, Dirichlet Variational Autoencoder, section 3.
    """

    log_concentration: Tensor

    def __init__(self, latent_dim: int, concentration: float = 1.0, learned: bool = False) -> None:
        super().__init__(latent_dim, learned)
        if latent_dim < 2:
            raise ValueError("latent_dim must be at least 2 for priors.Dirichlet, not 1: a single share is always 1")
        start = math.log(above(concentration, 0, "the concentration of priors.Dirichlet"))
        self.hold("log_concentration", torch.full((latent_dim,), start))

    def forward(self) -> dist.TorchDistribution:
        return dist.Dirichlet(positive(self.log_concentration))
