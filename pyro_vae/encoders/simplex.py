"""Encoders of codes on a simplex."""

import pyro.distributions as dist
from torch import Tensor

from pyro_vae.encoders._concentration import concentration
from pyro_vae.encoders._encoder import _Encoder


class Dirichlet(_Encoder):
    r"""Dirichlet encoder: codes are proportions that add up to 1.

    .. math:: q(z|x) = \Gamma \left( \sum_d \alpha_d(x) \right) \prod_d
              \frac{z_d^{\alpha_d(x) - 1}}{\Gamma(\alpha_d(x))}

    The network gives the concentrations :math:`\alpha`, each between 0.1 and 1,000. Gradients are pathwise: torch
    differentiates the gamma variates that a draw is made of (implicit reparameterization).

    Arguments:
        shape: shape of one datum.
        latent_dim: number of proportions D, at least 1; at 1 the code is always 1.
        network: builds the network from ``shape`` to (D,).

    Returns:
        ``forward(x)``, x of shape (\*batch, \*shape), returns a distribution of batch shape (\*batch) and event
        shape (D,), on the simplex.

    Raises:
        ValueError: where x is not of the shape the encoder was built for.

    Example:
        >>> import torch
        >>> z = Dirichlet(64, 3)(torch.zeros(5, 64)).sample()
        >>> torch.allclose(z.sum(-1), torch.ones(5))
        True

    Reference:
        Figurnov, Mohamed and Mnih, 2018, Implicit Reparameterization Gradients, section 3 and appendix B.
    """

    def forward(self, x: Tensor) -> dist.TorchDistribution:
        return dist.Dirichlet(concentration(self.output(x), floor=0.1))
