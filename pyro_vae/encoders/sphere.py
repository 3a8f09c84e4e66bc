"""Encoders to the unit sphere."""

import pyro.distributions as dist
from torch import Tensor

from pyro_vae import distributions
from pyro_vae.distributions.sphere import directions, sphere_dim
from pyro_vae.encoders._encoder import _Encoder
from pyro_vae.networks import MLP, Network, Sizes, positive


class PowerSpherical(_Encoder):
    r"""Power spherical encoder: a direction and how closely the code keeps to it.

    .. math:: q(z|x) \propto (1 + \mu(x)^\top z)^{\kappa(x)}, \qquad |z| = 1

    The network gives D numbers, whose direction is :math:`\mu`, and one more, of which
    `pyro_vae.networks.positive` makes the concentration :math:`\kappa`. The KL to
    `pyro_vae.priors.HypersphericalUniform` has a closed form.

    Arguments:
        shape: shape of one datum.
        latent_dim: number of latent coordinates D, at least 2: the sphere lies in D dimensions and has D - 1, so that
            11 makes the sphere called S^10.
        network: builds the network from ``shape`` to (D + 1,).

    Returns:
        ``forward(x)``, x of shape (\*batch, \*shape), returns a distribution of batch shape (\*batch) and event
        shape (D,).

    Raises:
        ValueError: where ``latent_dim`` is below 2 or x is not of the shape the encoder was built for.

    Example:
        >>> import torch
        >>> PowerSpherical(64, 11)(torch.zeros(5, 64)).event_shape
        torch.Size([11])

    Reference:
        De Cao and Aziz, 2020, The Power Spherical Distribution, section 4.
        Davidson et al., 2018, Hyperspherical Variational Auto-Encoders, section 3.
    """

    def __init__(self, shape: Sizes, latent_dim: int, network: Network = MLP) -> None:
        super().__init__(shape, latent_dim, network, out_shape=(sphere_dim(latent_dim, "latent_dim") + 1,))

    def posterior(self, output: Tensor) -> dist.TorchDistribution:
        return distributions.PowerSpherical(directions(output[..., :-1]), positive(output[..., -1]))
