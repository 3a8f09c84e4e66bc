"""Encoders of several bumps."""

from collections.abc import Sequence

from torch import Tensor

from pyro_vae import distributions
from pyro_vae.encoders._encoder import _Encoder
from pyro_vae.networks import MLP, Network, as_size, soft_clip


class MixtureOfNormals(_Encoder):
    r"""Encoder to a mixture of normals with diagonal covariances.

    .. math:: q(z|x) = \sum_k \pi_k(x) \prod_d \mathcal{N}(z_d; \mu_{kd}(x), \sigma_{kd}(x)^2)

    The network gives the unnormalized log-weights, the means and the log-variances; the first and the last pass through
    `pyro_vae.networks.soft_clip`. Gradients are pathwise, through all components
    (`pyro_vae.distributions.MixtureOfNormals`), dimension after dimension: a draw takes D steps.

    Arguments:
        shape: shape of one datum.
        latent_dim: number of latent dimensions D, at least 1.
        network: builds the network from ``shape`` to (K(1 + 2D),).
        components: number of components K, at least 1.

    Returns:
        ``forward(x)``, x of shape (\*batch, \*shape), returns a distribution of batch shape (\*batch) and event
        shape (D,).

    Raises:
        TypeError: where ``components`` is not an integer.
        ValueError: where ``components`` is below 1, or x is not of the shape the encoder was built for.

    Example:
        >>> import torch
        >>> MixtureOfNormals((1, 8, 8), 20, components=3)(torch.zeros(5, 1, 8, 8)).event_shape
        torch.Size([20])

    Reference:
        Graves, 2016, Stochastic Backpropagation through Mixture Density Distributions; Figurnov, Mohamed and Mnih,
        2018, Implicit Reparameterization Gradients, section 3.
    """

    def __init__(
        self, shape: int | Sequence[int], latent_dim: int, network: Network = MLP, components: int = 5
    ) -> None:
        size = as_size(latent_dim, "latent_dim")
        super().__init__(shape, latent_dim, network, out_shape=(as_size(components, "components") * (1 + 2 * size),))
        self.components = components

    def posterior(self, output: Tensor) -> distributions.MixtureOfNormals:
        of_component = output.unflatten(-1, (self.components, 1 + 2 * self.latent_dim))
        logits, loc, log_variance = of_component.split([1, self.latent_dim, self.latent_dim], -1)
        scale = (soft_clip(log_variance) / 2).exp()
        return distributions.MixtureOfNormals(soft_clip(logits.squeeze(-1)), loc, scale)

    def extra_repr(self) -> str:
        return f"components={self.components}"
