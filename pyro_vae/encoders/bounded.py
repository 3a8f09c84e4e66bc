"""Encoders of positive numbers, of proportions and of directions."""

import pyro.distributions as dist
from torch import Tensor

from pyro_vae import distributions
from pyro_vae.distributions.sphere import directions, sphere_dim
from pyro_vae.encoders._concentration import FLOORS, concentration
from pyro_vae.encoders._encoder import _Encoder
from pyro_vae.networks import MLP, Network, Sizes, positive


class Exponential(_Encoder):
    r"""Exponential encoder with independent dimensions.

    .. math:: q(z|x) = \prod_d \lambda_d(x) \exp(-\lambda_d(x) z_d), \qquad
              z_d = -\log(\epsilon_d) / \lambda_d(x), \quad \epsilon_d \sim \mathcal{U}(0, 1)

    Draws are made by the second equation, the inverse of the distribution function, through which gradients reach the
    rate. The network gives :math:`\log \lambda`, which passes through `pyro_vae.networks.positive`.

    Arguments:
        shape: shape of one datum.
        latent_dim: number of latent dimensions D, at least 1.
        network: builds the network from ``shape`` to (D,).

    Returns:
        ``forward(x)``, x of shape (\*batch, \*shape), returns a distribution of batch shape (\*batch) and event
        shape (D,), on codes above 0.

    Raises:
        ValueError: if x is not of the shape the encoder was built for.

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

    The network gives the concentration :math:`\alpha`, between 0.15 and 1,000, and the rate :math:`\beta`, which passes
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
        ValueError: if x is not of the shape the encoder was built for.

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
        return distributions.Gamma(concentration(log_shape, FLOORS["Gamma"]), positive(log_rate)).to_event(1)


class Weibull(_Encoder):
    r"""Weibull encoder with independent dimensions.

    .. math:: q(z|x) = \prod_d \frac{k_d(x)}{\lambda_d(x)} \left( \frac{z_d}{\lambda_d(x)} \right)^{k_d(x) - 1}
              \exp \left( -(z_d / \lambda_d(x))^{k_d(x)} \right), \qquad
              z_d = \lambda_d(x) (-\log \epsilon_d)^{1 / k_d(x)}, \quad \epsilon_d \sim \mathcal{U}(0, 1)

    Draws are made by the second equation, through which gradients pass. The distribution resembles a gamma
    distribution, and its KL to one has a closed form (`pyro_vae.distributions.kl_weibull_gamma`). The network gives the
    scale :math:`\lambda`, which passes through `pyro_vae.networks.positive`, and the concentration :math:`k`, between
    0.25 and 1,000.

    Arguments:
        shape: shape of one datum.
        latent_dim: number of latent dimensions D, at least 1.
        network: builds the network from ``shape`` to (2, D).

    Returns:
        ``forward(x)``, x of shape (\*batch, \*shape), returns a distribution of batch shape (\*batch) and event
        shape (D,), on codes above 0.

    Raises:
        ValueError: if x is not of the shape the encoder was built for.

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
        # At a concentration of 0.25 a draw is the scale times the fourth power of an exponential variate. The smallest
        # such variate in float32, about 1e-8, does not underflow with a scale of 5e-9; its tenth power, at 0.1, would.
        return distributions.Weibull(positive(log_scale), concentration(log_shape, FLOORS["Weibull"])).to_event(1)


class Beta(_Encoder):
    r"""Beta encoder with independent dimensions.

    .. math:: q(z|x) = \prod_d \frac{z_d^{\alpha_d(x) - 1} (1 - z_d)^{\beta_d(x) - 1}}
              {\mathrm{B}(\alpha_d(x), \beta_d(x))}

    The network gives both concentrations, each between 0.75 and 1,000. Gradients are pathwise: torch differentiates a
    draw at a fixed value of the distribution function (implicit reparameterization).

    Arguments:
        shape: shape of one datum.
        latent_dim: number of latent dimensions D, at least 1.
        network: builds the network from ``shape`` to (2, D).

    Returns:
        ``forward(x)``, x of shape (\*batch, \*shape), returns a distribution of batch shape (\*batch) and event
        shape (D,), on codes between 0 and 1.

    Raises:
        ValueError: if x is not of the shape the encoder was built for.

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
        one, zero = concentration(output, FLOORS["Beta"]).unbind(-2)
        return distributions.Beta(one, zero).to_event(1)


class Kumaraswamy(_Encoder):
    r"""Kumaraswamy encoder with independent dimensions: nearly a beta distribution, of a closed form.

    .. math:: q(z|x) = \prod_d a_d(x) b_d(x) z_d^{a_d(x) - 1} (1 - z_d^{a_d(x)})^{b_d(x) - 1}, \qquad
              z_d = (1 - \epsilon_d^{1 / b_d(x)})^{1 / a_d(x)}, \quad \epsilon_d \sim \mathcal{U}(0, 1)

    Draws are made by the second equation, through which gradients pass. The network gives both concentrations, each
    between 0.75 and 1,000.

    Arguments:
        shape: shape of one datum.
        latent_dim: number of latent dimensions D, at least 1.
        network: builds the network from ``shape`` to (2, D).

    Returns:
        ``forward(x)``, x of shape (\*batch, \*shape), returns a distribution of batch shape (\*batch) and event
        shape (D,), on codes between 0 and 1.

    Raises:
        ValueError: if x is not of the shape the encoder was built for.

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
        one, zero = concentration(output, FLOORS["Kumaraswamy"]).unbind(-2)
        return distributions.Kumaraswamy(one, zero).to_event(1)


class PowerSpherical(_Encoder):
    r"""Power spherical encoder: a direction and how closely the code keeps to it.

    .. math:: q(z|x) \propto (1 + \mu(x)^\top z)^{\kappa(x)}, \qquad |z| = 1

    The network gives D numbers, whose direction is :math:`\mu`, and one more, which `pyro_vae.networks.positive` turns
    into the concentration :math:`\kappa`. The KL to `pyro_vae.priors.HypersphericalUniform` has a closed form.

    Arguments:
        shape: shape of one datum.
        latent_dim: number of latent coordinates D, at least 2: the sphere has D - 1 dimensions and lies in D, so that
            11 gives the sphere S^10.
        network: builds the network from ``shape`` to (D + 1,).

    Returns:
        ``forward(x)``, x of shape (\*batch, \*shape), returns a distribution of batch shape (\*batch) and event
        shape (D,).

    Raises:
        ValueError: if ``latent_dim`` is below 2 or x is not of the shape the encoder was built for.

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
