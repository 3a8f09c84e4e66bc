"""Decoders of real values, with normal or heavier tails."""

import pyro.distributions as dist
from torch import Tensor

from pyro_vae import distributions
from pyro_vae.arguments import held
from pyro_vae.decoders._decoder import _ScaleDecoder
from pyro_vae.networks import MLP, Network, Sizes


class Normal(_ScaleDecoder):
    r"""Normal likelihood: squared error in units of a variance, fixed or learned, shared by all entries of x or not.

    .. math:: \log p(x|z) = \sum_i \log \mathcal{N}(x_i; \mu_i(z), \sigma_i^2)

    Arguments:
        latent_dim: number of latent dimensions D, at least 1, or the shape of a code.
        shape: shape of one datum.
        network: builds the network from (D,) to ``shape``.
        scale: the standard deviation, from 1e-18 to 1e18; if it is learned, its initial value.
        learned: learn the scale.
        per_dimension: learn one scale for each entry of x, not one for all; needs ``learned``.

    Returns:
        ``forward(z)``, z of shape (\*batch, D), returns a distribution of batch shape (\*batch) and event shape
        ``shape``.

    Raises:
        ValueError: if the scale is out of its range or per dimension but not learned, or z is not of the shape the
            decoder was built for.

    Example:
        >>> import torch
        >>> Normal(20, 64, scale=0.1)(torch.zeros(5, 20)).stddev[0, 0]
        tensor(0.1000)

    Reference:
        Rybkin, Daniilidis and Levine, 2021, Simple and Effective VAE Training with Calibrated Decoders, section 3.
    """

    def forward(self, z: Tensor) -> dist.TorchDistribution:
        return dist.Normal(self.output(z), self.scales()).to_event(len(self.shape))


class Laplace(_ScaleDecoder):
    r"""Laplace likelihood: absolute error in units of a scale, fixed or learned.

    .. math:: \log p(x|z) = - \sum_i \frac{|x_i - \mu_i(z)|}{b_i} + \log 2 b_i

    Arguments:
        latent_dim: number of latent dimensions D, at least 1, or the shape of a code.
        shape: shape of one datum.
        network: builds the network from (D,) to ``shape``.
        scale: the scale b, from 1e-18 to 1e18; if it is learned, its initial value.
        learned: learn the scale.
        per_dimension: learn one scale for each entry of x, not one for all; needs ``learned``.

    Returns:
        ``forward(z)``, z of shape (\*batch, D), returns a distribution of batch shape (\*batch) and event shape
        ``shape``.

    Raises:
        ValueError: if the scale is out of its range or per dimension but not learned, or z is not of the shape the
            decoder was built for.

    Example:
        >>> import torch
        >>> Laplace(20, 64, scale=0.5)(torch.zeros(5, 20)).variance[0, 0]
        tensor(0.5000)

    Reference:
        Bishop, 2006, Pattern Recognition and Machine Learning, equation 2.126 at q = 1.
    """

    def forward(self, z: Tensor) -> dist.TorchDistribution:
        return dist.Laplace(self.output(z), self.scales()).to_event(len(self.shape))


class StudentT(_ScaleDecoder):
    r"""Student's t likelihood: robust to entries far from their location, whose pull falls off with the distance.

    .. math:: \log p(x|z) = \sum_i \log \mathcal{T}_\nu \left( \frac{x_i - \mu_i(z)}{\sigma_i} \right)
              - \log \sigma_i

    Arguments:
        latent_dim: number of latent dimensions D, at least 1, or the shape of a code.
        shape: shape of one datum.
        network: builds the network from (D,) to ``shape``.
        df: degrees of freedom, above 2, so that the variance is finite.
        scale: the scale, from 1e-18 to 1e18; if it is learned, its initial value.
        learned: learn the scale.
        per_dimension: learn one scale for each entry of x, not one for all; needs ``learned``.

    Returns:
        ``forward(z)``, z of shape (\*batch, D), returns a distribution of batch shape (\*batch) and event shape
        ``shape``.

    Raises:
        ValueError: if the degrees of freedom are not above 2, the scale is out of its range or per dimension but not
            learned, or z is not of the shape the decoder was built for.

    Example:
        >>> import torch
        >>> StudentT(20, 64, df=4.0, learned=False)(torch.zeros(5, 20)).variance[0, 0]
        tensor(2.)

    Reference:
        Bishop, 2006, Pattern Recognition and Machine Learning, equation 2.159.
    """

    def __init__(
        self,
        latent_dim: Sizes,
        shape: Sizes,
        network: Network = MLP,
        df: float = 5.0,
        scale: float = 1.0,
        learned: bool = True,
        per_dimension: bool = False,
    ) -> None:
        super().__init__(latent_dim, shape, network, scale, learned, per_dimension)
        self.df = held(df, 2, "the df of decoders.StudentT, whose limit is decoders.Normal,", low=2.000001)

    def forward(self, z: Tensor) -> dist.TorchDistribution:
        return distributions.StudentT(self.df, self.output(z), self.scales()).to_event(len(self.shape))

    def extra_repr(self) -> str:
        return f"df={self.df:.4g}, {super().extra_repr()}"
