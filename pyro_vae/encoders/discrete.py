"""Encoders of discrete codes."""

import pyro.distributions as dist
from torch import Tensor

from pyro_vae import distributions
from pyro_vae.arguments import as_size
from pyro_vae.encoders._encoder import _Encoder
from pyro_vae.networks import MLP, Network, Sizes, soft_clip


class Bernoulli(_Encoder):
    r"""Bernoulli encoder: codes of independent zeros and ones.

    .. math:: q(z|x) = \prod_d p_d(x)^{z_d} (1 - p_d(x))^{1 - z_d}

    The network gives the logits of :math:`p`, which pass through `pyro_vae.networks.soft_clip`, so that neither value
    becomes impossible. There is no pathwise gradient: Pyro's ELBOs use the score function, or
    ``pyro.infer.TraceEnum_ELBO`` sums over all codes, if there are at most 4,096 (D up to 12).

    Arguments:
        shape: shape of one datum.
        latent_dim: number of latent dimensions D, at least 1.
        network: builds the network from ``shape`` to (D,).

    Returns:
        ``forward(x)``, x of shape (\*batch, \*shape), returns a distribution of batch shape (\*batch) and event
        shape (D,), on codes of 0 and 1.

    Raises:
        ValueError: if x is not of the shape the encoder was built for.

    Example:
        >>> import torch
        >>> Bernoulli(64, 3)(torch.zeros(5, 64)).enumerate_support(expand=False).shape
        torch.Size([8, 1, 3])

    Reference:
        Mnih and Gregor, 2014, Neural Variational Inference and Learning in Belief Networks.
    """

    def posterior(self, output: Tensor) -> dist.TorchDistribution:
        return distributions.EnumerableIndependent(dist.Bernoulli(logits=soft_clip(output)), 1)


class OneHotCategorical(_Encoder):
    r"""Categorical encoder: codes of independent one-hot vectors.

    .. math:: q(z|x) = \prod_d \prod_k \pi_{dk}(x)^{z_{dk}}

    The network gives the logits of :math:`\pi`, which pass through `pyro_vae.networks.soft_clip`, so that no category
    becomes impossible. There is no pathwise gradient: Pyro's ELBOs use the score function, or
    ``pyro.infer.TraceEnum_ELBO`` sums over all codes, if there are at most 4,096.

    Arguments:
        shape: shape of one datum.
        latent_dim: number of latent variables D, at least 1.
        network: builds the network from ``shape`` to (D, K).
        categories: number of categories K of each variable, at least 1.

    Returns:
        ``forward(x)``, x of shape (\*batch, \*shape), returns a distribution of batch shape (\*batch) and event
        shape (D, K), each row of which is one-hot.

    Raises:
        TypeError: if ``categories`` is not an integer.
        ValueError: if ``categories`` is below 1 or x is not of the shape the encoder was built for.

    Example:
        >>> import torch
        >>> OneHotCategorical(64, 2, categories=5)(torch.zeros(5, 64)).enumerate_support(expand=False).shape
        torch.Size([25, 1, 2, 5])

    Reference:
        Kingma, Mohamed, Jimenez Rezende and Welling, 2014, Semi-supervised Learning with Deep Generative Models,
        equation 4.
    """

    def __init__(self, shape: Sizes, latent_dim: int, network: Network = MLP, categories: int = 10) -> None:
        sizes = as_size(latent_dim, "latent_dim"), as_size(categories, "categories")
        super().__init__(shape, latent_dim, network, out_shape=sizes)
        self.categories = sizes[1]

    def posterior(self, output: Tensor) -> dist.TorchDistribution:
        return distributions.EnumerableIndependent(distributions.OneHotCategorical(logits=soft_clip(output)), 1)
