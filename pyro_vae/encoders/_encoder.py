"""The base class of the encoders."""

import pyro.distributions as dist
from torch import Tensor

from pyro_vae.arguments import as_function, as_size
from pyro_vae.networks import MLP, Network, Shape, Sizes, as_shape, check_event_shape
from pyro_vae.networks._part import Part


class _Encoder(Part):
    """A network from x to ``numbers`` per latent dimension (one if it is None), or to ``out_shape``."""

    numbers: int | None = None

    def __init__(
        self, shape: Sizes, latent_dim: int, network: Network = MLP, *, out_shape: Shape | None = None
    ) -> None:
        super().__init__()
        self.shape, self.latent_dim = as_shape(shape), as_size(latent_dim, "latent_dim")
        out_shape = out_shape or (*([self.numbers] if self.numbers else []), self.latent_dim)
        self.network = as_function(network, "network")(self.shape, out_shape)

    def output(self, x: Tensor) -> Tensor:
        """Return the network's output for x, of shape (\\*batch, [numbers,] D[, categories])."""
        check_event_shape(x, self.shape, f"encoders.{type(self).__name__}", "x")
        return self.network(x)

    def posterior(self, output: Tensor) -> dist.TorchDistribution:
        """Return q(z|x), of batch shape (\\*batch), from the network's output for x."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> dist.TorchDistribution:
        return self.posterior(self.output(x))
