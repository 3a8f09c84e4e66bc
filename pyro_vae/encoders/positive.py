"""Encoders of positive codes."""

import pyro.distributions as dist
from torch import Tensor

from pyro_vae.encoders._concentration import concentration
from pyro_vae.encoders._encoder import _Encoder
from pyro_vae.networks import positive


class Exponential(_Encoder):
    r"""Exponential encoder with independent dimensions.

    .. math:: q(z|x) = \prod_d \lambda_d(x) \exp(-\lambda_d(x) z_d), \qquad
              z_d = -\log(\epsilon_d) / \lambda_d(x), \quad \epsilon_d \sim \mathcal{U}(0, 1)

    The second equation is how it is drawn: the inverse of the distribution function, through which gradients reach
    the rate. The network gives :math:`\log \lambda`, which passes through `pyro_vae.networks.positive`.

    Arguments:
        shape: shape of one datum.
        latent_dim: number of latent dimensions D, at least 1.
        network: builds the network from ``shape`` to (D,).

    Returns:
        ``forward(x)``, x of shape (\*batch, \*shape), returns a distribution of batch shape (\*batch) and event
        shape (D,), on codes above 0.

    Raises:
        ValueError: where x is not of the shape the encoder was built for.

    Example:
        >>> import torch
        >>> bool((Exponential(64, 2)(torch.zeros(5, 64)).sample() > 0).all())
        True

    Reference:
        Kingma and Welling, 2014, Auto-Encoding Variational Bayes, section 2.4 (the inverse of the distribution
        function).
    """

    def posterior(self, output: Tensor) -> dist.TorchDistribution:
        return dist.Exponential(positive(output)).to_event(1)


class Gamma(_Encoder):
    r"""Gamma encoder with independent dimensions.

    .. math:: q(z|x) = \prod_d \frac{\beta_d(x)^{\alpha_d(x)}}{\Gamma(\alpha_d(x))}
              z_d^{\alpha_d(x) - 1} \exp(-\beta_d(x) z_d)

    The network gives the concentration :math:`\alpha`, between 0.1 and 1,000, and the rate :math:`\beta`, which passes
    through `pyro_vae.networks.positive`. Gradients are pathwise: torch differentiates a draw at a fixed value of the
    distribution function (implicit reparameterization).

    Arguments:
        shape: shape of one datum.
        latent_dim: number of latent dimensions D, at least 1.
        network: builds the network from ``shape`` to (2, D).

    Returns:
        ``forward(x)``, x of shape (\*batch, \*shape), returns a distribution of batch shape (\*batch) and event
        shape (D,), on codes above 0.

    Raises:
        ValueError: where x is not of the shape the encoder was built for.

    Example:
        >>> import torch
        >>> bool((Gamma(64, 2)(torch.zeros(5, 64)).sample() > 0).all())
        True

    Reference:
        Figurnov, Mohamed and Mnih, 2018, Implicit Reparameterization Gradients, section 3.
    """

    numbers = 2

    def posterior(self, output: Tensor) -> dist.TorchDistribution:
        log_shape, log_rate = output.unbind(-2)
        return dist.Gamma(concentration(log_shape, floor=0.1), positive(log_rate)).to_event(1)


class Weibull(_Encoder):
    r"""Weibull encoder with independent dimensions.

    .. math:: q(z|x) = \prod_d \frac{k_d(x)}{\lambda_d(x)} \left( \frac{z_d}{\lambda_d(x)} \right)^{k_d(x) - 1}
              \exp \left( -(z_d / \lambda_d(x))^{k_d(x)} \right), \qquad
              z_d = \lambda_d(x) (-\log \epsilon_d)^{1 / k_d(x)}, \quad \epsilon_d \sim \mathcal{U}(0, 1)

    The second equation is how it is drawn, and what its gradients pass through. It resembles a gamma distribution, to
    which its KL has a closed form (`pyro_vae.distributions.kl_weibull_gamma`). The network gives the scale
    :math:`\lambda`, which passes through `pyro_vae.networks.positive`, and the concentration :math:`k`, between 0.25
    and 1,000.

    Arguments:
        shape: shape of one datum.
        latent_dim: number of latent dimensions D, at least 1.
        network: builds the network from ``shape`` to (2, D).

    Returns:
        ``forward(x)``, x of shape (\*batch, \*shape), returns a distribution of batch shape (\*batch) and event
        shape (D,), on codes above 0.

    Raises:
        ValueError: where x is not of the shape the encoder was built for.

    Example:
        >>> import torch
        >>> bool((Weibull(64, 2)(torch.zeros(5, 64)).sample() > 0).all())
        True

    Reference:
        Zhang, Chen, Guo and Zhou, 2018, WHAI: Weibull Hybrid Autoencoding Inference for Deep Topic Modeling.
    """

    numbers = 2

    def posterior(self, output: Tensor) -> dist.TorchDistribution:
        log_scale, log_shape = output.unbind(-2)
        # The fourth power of the smallest exponential variate in float32, about 1e-8, times a scale of 5e-9 does not
        # underflow; a tenth power, of a concentration of 0.1, would.
        return dist.Weibull(positive(log_scale), concentration(log_shape, floor=0.25)).to_event(1)
