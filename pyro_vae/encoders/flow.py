"""Encoders by normalizing flows: a normal distribution followed by transformations."""

import pyro.distributions as dist
from torch import Tensor, nn

from pyro_vae.arguments import as_size
from pyro_vae.distributions.flow import ConditionalAutoregressive, ConditionalFlow, ConditionalPlanar
from pyro_vae.encoders._encoder import _Encoder
from pyro_vae.networks import MLP, Network, Sizes, deviation

_KINDS = ("IAF", "MAF", "NSF", "planar")


class Flow(_Encoder):
    r"""Normalizing flow encoder: a normal with a diagonal covariance, then transformations that know x by a context.

    .. math:: z = f_T \circ \dots \circ f_1(z_0; c(x)), \qquad z_0 \sim \mathcal{N}(\mu(x), \sigma(x)^2), \qquad
              \log q(z|x) = \log \mathcal{N}(z_0; \mu, \sigma^2) - \sum_t \log \left|\det
              \frac{\partial f_t}{\partial z_{t-1}}\right|

    The network gives the mean, the log-variance, which passes through `pyro_vae.networks.clip_log_variance`, and the
    context, which passes through `pyro_vae.networks.soft_clip`. The transformations start as the identity, so that the
    encoder starts as `Normal`.

    - ``"IAF"``: affine and autoregressive; a draw takes one pass of a masked network per transformation. Each
      transformation scales by a factor between 1/1000 and 1000.
    - ``"MAF"``: the inverse of IAF; a draw takes D passes, but the density of any other value only one.
    - ``"NSF"``: like IAF, but with rational-quadratic splines on [-5, 5], which can produce several modes.
    - ``"planar"``: one ridge per transformation; ``hidden`` is not used.

    The log-probability of a draw needs no inverse; that of any other value is right as well. With one latent dimension
    IAF and MAF only scale and shift, so that the encoder stays normal.

    Arguments:
        shape: shape of one datum.
        latent_dim: number of latent dimensions D, at least 1.
        network: builds the network from ``shape`` to (2D + context,).
        transform: "IAF", "MAF", "NSF" or "planar".
        transforms: number of transformations T, at least 1; autoregressive ones reverse the order of the dimensions
            each time.
        hidden: width of the two hidden layers of a masked network, at least 1.
        context: number of entries of the context c, at least 1.

    Returns:
        ``forward(x)``, x of shape (\*batch, \*shape), returns a distribution of batch shape (\*batch) and event
        shape (D,).

    Raises:
        TypeError: if a number is not an integer.
        ValueError: if a number is below 1, ``transform`` is unknown, or x is not of the shape the encoder was built
            for.

    Example:
        >>> import torch
        >>> Flow((1, 8, 8), 20, transform="planar")(torch.zeros(5, 1, 8, 8)).event_shape
        torch.Size([20])

    Reference:
        Rezende and Mohamed, 2015, Variational Inference with Normalizing Flows, equations 13 and 21;
        Kingma et al., 2016, Improved Variational Inference with Inverse Autoregressive Flow, algorithm 1.
    """

    def __init__(
        self,
        shape: Sizes,
        latent_dim: int,
        network: Network = MLP,
        transform: str = "IAF",
        transforms: int = 2,
        hidden: int = 64,
        context: int = 16,
    ) -> None:
        size, count = as_size(latent_dim, "latent_dim"), as_size(transforms, "transforms")
        if transform not in _KINDS:
            raise ValueError(f"transform of encoders.Flow must be one of {', '.join(_KINDS)}, not {transform!r}")
        hidden, context = as_size(hidden, "hidden"), as_size(context, "context")
        super().__init__(shape, latent_dim, network, out_shape=(2 * size + context,))
        self.transform, self.context = transform, context
        self.transforms = nn.ModuleList(
            ConditionalPlanar(size, context)
            if transform == "planar"
            else ConditionalAutoregressive(transform, size, context, hidden, reverse=index % 2 == 1)
            for index in range(count)
        )

    def posterior(self, output: Tensor) -> dist.TorchDistribution:
        mean, log_variance, context = output.split([self.latent_dim, self.latent_dim, self.context], -1)
        base = dist.Normal(mean, deviation(log_variance)).to_event(1)
        return ConditionalFlow(base, [transform(context) for transform in self.transforms])
