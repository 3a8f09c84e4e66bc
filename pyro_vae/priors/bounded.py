"""Priors of positive numbers, of proportions and of directions."""

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_vae import distributions
from pyro_vae.arguments import held
from pyro_vae.distributions.sphere import sphere_dim
from pyro_vae.networks._part import Part
from pyro_vae.priors._prior import _Prior


class Exponential(_Prior):
    r"""Exponential prior with independent dimensions, of rate 1 or with learned rates.

    .. math:: p(z) = \prod_d \beta_d e^{-\beta_d z_d}, \qquad z_d > 0, \; \beta = 1 \text{ unless learned.}

    Arguments:
        latent_dim: number of latent dimensions D, at least 1.
        learned: learn the rates, starting from 1.

    Returns:
        ``forward()`` returns a distribution of batch shape () and event shape (D,).

    Raises:
        TypeError: if ``latent_dim`` is not an integer.
        ValueError: if ``latent_dim`` is below 1.

    Example:
        >>> Exponential(3)().mean
        tensor([1., 1., 1.])

    Reference:
        Vertes and Sahani, 2018, Flexible and Accurate Inference and Learning for Deep Generative Models.
    """

    zeros = ("log_rate",)
    log_rate: Tensor

    def forward(self) -> dist.TorchDistribution:
        return dist.Exponential(self.log_rate.exp()).to_event(1)


class Gamma(_Prior):
    r"""Gamma prior with independent dimensions, of rate 1 or with learned concentrations and rates.

    .. math:: p(z) = \prod_d \frac{\beta_d^{\alpha_d}}{\Gamma(\alpha_d)} z_d^{\alpha_d - 1} e^{-\beta_d z_d},
              \qquad z_d > 0, \; \beta = 1 \text{ unless learned.}

    Arguments:
        latent_dim: number of latent dimensions D, at least 1.
        concentration: :math:`\alpha`, above 0 and at most 1e8; 1 makes the prior exponential.
        learned: learn concentrations and rates, starting from ``concentration`` and 1.

    Returns:
        ``forward()`` returns a distribution of batch shape () and event shape (D,).

    Raises:
        TypeError: if ``latent_dim`` is not an integer.
        ValueError: if ``latent_dim`` is below 1, or the concentration is out of its range.

    Example:
        >>> Gamma(3, concentration=1.0)().mean
        tensor([1., 1., 1.])

    Reference:
        Figurnov, Mohamed and Mnih, 2018, Implicit Reparameterization Gradients, section 6.
    """

    zeros = ("log_rate",)
    log_rate: Tensor

    def __init__(self, latent_dim: int, concentration: float = 2.0, learned: bool = False) -> None:
        super().__init__(latent_dim, learned)
        start = held(concentration, 0, "the concentration of priors.Gamma", high=1e8)
        self.hold_positive("concentration", start, latent_dim)

    def forward(self) -> dist.TorchDistribution:
        return distributions.Gamma(self.positive("concentration"), self.log_rate.exp()).to_event(1)


class Beta(_Prior):
    r"""Beta prior with independent dimensions, symmetric or with learned concentrations.

    .. math:: p(z) = \prod_d \frac{\Gamma(\alpha_d + \beta_d)}{\Gamma(\alpha_d) \Gamma(\beta_d)}
              z_d^{\alpha_d - 1} (1 - z_d)^{\beta_d - 1}, \qquad 0 < z_d < 1, \; \alpha = \beta \text{ unless learned.}

    Arguments:
        latent_dim: number of latent dimensions D, at least 1.
        concentration: :math:`\alpha` and :math:`\beta`, above 0 and at most 1e8; 1 makes the prior
            uniform.
        learned: learn the concentrations, starting from ``concentration``.

    Returns:
        ``forward()`` returns a distribution of batch shape () and event shape (D,).

    Raises:
        TypeError: if ``latent_dim`` is not an integer.
        ValueError: if ``latent_dim`` is below 1, or the concentration is out of its range.

    Example:
        >>> Beta(2)().mean
        tensor([0.5000, 0.5000])

    Reference:
        Figurnov, Mohamed and Mnih, 2018, Implicit Reparameterization Gradients, section 6.
    """

    def __init__(self, latent_dim: int, concentration: float = 1.0, learned: bool = False) -> None:
        super().__init__(latent_dim, learned)
        start = held(concentration, 0, "the concentration of priors.Beta", high=1e8)
        self.hold_positive("concentrations", start, 2, latent_dim)

    def forward(self) -> dist.TorchDistribution:
        return distributions.Beta(*self.positive("concentrations")).to_event(1)


class Dirichlet(_Prior):
    r"""Dirichlet prior: positive shares that add up to 1, symmetric or with learned concentrations.

    .. math:: p(z) = \frac{\Gamma(\sum_d \alpha_d)}{\prod_d \Gamma(\alpha_d)} \prod_d z_d^{\alpha_d - 1},
              \qquad z_d > 0, \; \sum_d z_d = 1

    Arguments:
        latent_dim: number of shares D, at least 2.
        concentration: :math:`\alpha`, above 0 and at most 1e8: 1 makes the prior uniform, less than 1 makes it sparse.
        learned: learn the concentrations, starting from ``concentration``.

    Returns:
        ``forward()`` returns a distribution of batch shape () and event shape (D,).

    Raises:
        TypeError: if ``latent_dim`` is not an integer.
        ValueError: if ``latent_dim`` is below 2, or the concentration is out of its range.

    Example:
        >>> Dirichlet(4)().mean
        tensor([0.2500, 0.2500, 0.2500, 0.2500])

    Reference:
        Joo, Lee, Park and Moon, 2020, Dirichlet Variational Autoencoder, section 3.
    """

    def __init__(self, latent_dim: int, concentration: float = 1.0, learned: bool = False) -> None:
        super().__init__(latent_dim, learned)
        if latent_dim < 2:
            raise ValueError("latent_dim must be at least 2 for priors.Dirichlet, not 1: a single share is always 1")
        start = held(concentration, 0, "the concentration of priors.Dirichlet", high=1e8)
        self.hold_positive("concentration", start, latent_dim)

    def forward(self) -> dist.TorchDistribution:
        return distributions.Dirichlet(self.positive("concentration"))


class HypersphericalUniform(Part):
    r"""Uniform prior on the unit sphere.

    .. math:: p(z) = \frac{\Gamma(D/2)}{2 \pi^{D/2}}, \qquad |z| = 1

    Arguments:
        latent_dim: number of latent coordinates D, at least 2: the sphere has D - 1 dimensions and lies in D.

    Returns:
        ``forward()`` returns a distribution of batch shape () and event shape (D,), whose density is with respect to
        the surface measure.

    Raises:
        TypeError: if ``latent_dim`` is not an integer.
        ValueError: if ``latent_dim`` is below 2.

    Example:
        >>> HypersphericalUniform(11)().event_shape
        torch.Size([11])

    Reference:
        Davidson et al., 2018, Hyperspherical Variational Auto-Encoders, section 3.
    """

    origin: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = sphere_dim(latent_dim, "latent_dim")
        self.register_buffer("origin", torch.zeros(latent_dim), persistent=False)

    def forward(self) -> dist.TorchDistribution:
        return distributions.HypersphericalUniform(len(self.origin), self.origin.dtype, self.origin.device)
