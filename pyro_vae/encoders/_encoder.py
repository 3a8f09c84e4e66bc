"""What the encoders share."""

from collections.abc import Sequence

from torch import Tensor, nn

from pyro_vae.networks import MLP, Network, as_shape, as_size, check_event_shape


class _Encoder(nn.Module):
    """A network from x to ``numbers`` per latent dimension, or to one where ``numbers`` is None.

    Where ``categories`` is set, before this constructor is called, there is one of each per category.
    """

    numbers: int | None = None
    categories: int | None = None

    def __init__(self, shape: int | Sequence[int], latent_dim: int, network: Network = MLP) -> None:
        super().__init__()
        self.shape, self.latent_dim = as_shape(shape), as_size(latent_dim, "latent_dim")
        sizes = (self.numbers, self.latent_dim, self.categories)
        self.network = network(self.shape, tuple(size for size in sizes if size is not None))

    def output(self, x: Tensor) -> Tensor:
        """Return the network's output for x, of shape (\\*batch, [numbers,] D[, categories])."""
        check_event_shape(x, self.shape, f"encoders.{type(self).__name__}", "x")
        return self.network(x)

    def outputs(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the ``numbers`` outputs of the network for x, each of shape (\\*batch, D)."""
        return self.output(x).unbind(-2)
