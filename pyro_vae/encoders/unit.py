"""Encoders of codes between 0 and 1."""

import pyro.distributions as dist
from torch import Tensor

from pyro_vae.distributions import Kumaraswamy as KumaraswamyDistribution
from pyro_vae.encoders._concentration import concentration
from pyro_vae.encoders._encoder import _Encoder


class Beta(_Encoder):
    r"""Beta encoder with independent dimensions.

    .. math:: q(z|x) = \prod_d \frac{z_d^{\alpha_d(x) - 1} (1 - z_d)^{\beta_d(x) - 1}}
              {\mathrm{B}(\alpha_d(x), \beta_d(x))}

    The network gives both concentrations, each between 0.5 and 1,000. Gradients are pathwise: torch differentiates a
    draw at a fixed value of the distribution function (implicit reparameterization).

    Arguments:
        shape: shape of one datum.
        latent_dim: number of latent dimensions D, at least 1.
        network: builds the network from ``shape`` to (2, D).

    Returns:
        ``forward(x)``, x of shape (\*batch, \*shape), returns a distribution of batch shape (\*batch) and event
        shape (D,), on codes between 0 and 1.

    Raises:
        ValueError: where x is not of the shape the encoder was built for.

    Example:
        >>> import torch
        >>> z = Beta(64, 2)(torch.zeros(5, 64)).sample()
        >>> bool(((z > 0) & (z < 1)).all())
        True

    Reference:
        Figurnov, Mohamed and Mnih, 2018, Implicit Reparameterization Gradients, section 3.
    """

    numbers = 2

    def posterior(self, output: Tensor) -> dist.TorchDistribution:
        one, zero = concentration(output, floor=0.5).unbind(-2)
        return dist.Beta(one, zero).to_event(1)


class Kumaraswamy(_Encoder):
    r"""Kumaraswamy encoder with independent dimensions: nearly a beta distribution, of a closed form.

    .. math:: q(z|x) = \prod_d a_d(x) b_d(x) z_d^{a_d(x) - 1} (1 - z_d^{a_d(x)})^{b_d(x) - 1}, \qquad
              z_d = (1 - \epsilon_d^{1 / b_d(x)})^{1 / a_d(x)}, \quad \epsilon_d \sim \mathcal{U}(0, 1)

    The second equation is how it is drawn, and what its gradients pass through. The network gives both concentrations,
    each between 0.5 and 1,000.

    Arguments:
        shape: shape of one datum.
        latent_dim: number of latent dimensions D, at least 1.
        network: builds the network from ``shape`` to (2, D).

    Returns:
        ``forward(x)``, x of shape (\*batch, \*shape), returns a distribution of batch shape (\*batch) and event
        shape (D,), on codes between 0 and 1.

    Raises:
        ValueError: where x is not of the shape the encoder was built for.

    Example:
        >>> import torch
        >>> z = Kumaraswamy(64, 2)(torch.zeros(5, 64)).sample()
        >>> bool(((z > 0) & (z < 1)).all())
        True

    Reference:
        Nalisnick and Smyth, 2017, Stick-Breaking Variational Autoencoders.
    """

    numbers = 2

    def posterior(self, output: Tensor) -> dist.TorchDistribution:
        one, zero = concentration(output, floor=0.5).unbind(-2)
        return KumaraswamyDistribution(one, zero).to_event(1)
