"""Priors of real codes."""

import pyro.distributions as dist
from torch import Tensor

from pyro_vae import distributions
from pyro_vae.arguments import held
from pyro_vae.priors._prior import _Prior


class Normal(_Prior):
    r"""Normal prior with independent dimensions, standard or with learned location and scale.

    .. math:: p(z) = \prod_d \mathcal{N}(z_d; \mu_d, \sigma_d^2), \qquad \mu = 0, \sigma = 1 \text{ unless learned.}

    Arguments:
        latent_dim: number of latent dimensions D, at least 1.
        learned: learn the location and the scale, starting from the standard normal distribution.

    Returns:
        ``forward()`` returns a distribution of batch shape () and event shape (D,).

    Raises:
        TypeError: if ``latent_dim`` is not an integer.
        ValueError: if ``latent_dim`` is below 1.

    Example:
        >>> Normal(20)().event_shape
        torch.Size([20])

    Reference:
        Kingma and Welling, 2014, Auto-Encoding Variational Bayes, section 3.
    """

    zeros = ("loc", "log_scale")
    loc: Tensor
    log_scale: Tensor

    def forward(self) -> dist.TorchDistribution:
        return dist.Normal(self.loc, self.log_scale.exp()).to_event(1)


class Laplace(_Prior):
    r"""Laplace prior with independent dimensions, standard or with learned location and scale.

    .. math:: p(z) = \prod_d \frac{1}{2 b_d} e^{-|z_d - \mu_d| / b_d}, \qquad \mu = 0, b = 1 \text{ unless learned.}

    Arguments:
        latent_dim: number of latent dimensions D, at least 1.
        learned: learn the location and the scale, starting from the standard Laplace distribution.

    Returns:
        ``forward()`` returns a distribution of batch shape () and event shape (D,).

    Raises:
        TypeError: if ``latent_dim`` is not an integer.
        ValueError: if ``latent_dim`` is below 1.

    Example:
        >>> Laplace(20)().event_shape
        torch.Size([20])

    Reference:
        Barello, Charles and Pillow, 2018, Sparse-Coding Variational Auto-Encoders.
    """

    zeros = ("loc", "log_scale")
    loc: Tensor
    log_scale: Tensor

    def forward(self) -> dist.TorchDistribution:
        return dist.Laplace(self.loc, self.log_scale.exp()).to_event(1)


class StudentT(_Prior):
    r"""Student's t prior with independent dimensions, standard or with learned location and scale.

    .. math:: p(z) = \prod_d \frac{\Gamma((\nu + 1) / 2)}{\Gamma(\nu / 2) \sqrt{\nu \pi} \, \sigma_d}
              \left(1 + \frac{(z_d - \mu_d)^2}{\nu \sigma_d^2}\right)^{-(\nu + 1) / 2},
              \qquad \mu = 0, \sigma = 1 \text{ unless learned.}

    The variance is :math:`\sigma^2 \nu / (\nu - 2)`.

    Arguments:
        latent_dim: number of latent dimensions D, at least 1.
        df: degrees of freedom :math:`\nu`, above 2, fixed.
        learned: learn the location and the scale, starting from the standard distribution.

    Returns:
        ``forward()`` returns a distribution of batch shape () and event shape (D,).

    Raises:
        TypeError: if ``latent_dim`` is not an integer.
        ValueError: if ``latent_dim`` is below 1, or the degrees of freedom are not above 2.

    Example:
        >>> StudentT(2, df=4.0)().variance
        tensor([2., 2.])

    Reference:
        Abiri and Ohlsson, 2020, Variational Auto-Encoders with Student's t-Prior.
    """

    zeros = ("loc", "log_scale")
    loc: Tensor
    log_scale: Tensor

    def __init__(self, latent_dim: int, df: float = 5.0, learned: bool = False) -> None:
        super().__init__(latent_dim, learned)
        self.df = held(df, 2, "the degrees of freedom of priors.StudentT, whose variance is finite,", low=2.000001)

    def forward(self) -> dist.TorchDistribution:
        return distributions.StudentT(self.df, self.loc, self.log_scale.exp()).to_event(1)
