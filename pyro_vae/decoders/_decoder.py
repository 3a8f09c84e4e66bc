"""What the decoders share."""

from collections.abc import Sequence

from torch import Tensor, nn

from pyro_vae.networks import MLP, Network, as_shape, check_event_shape


class _Decoder(nn.Module):
    """A network from z to ``numbers`` per entry of x, or to one where ``numbers`` is None."""

    numbers: int | None = None

    def __init__(self, latent_dim: int | Sequence[int], shape: int | Sequence[int], network: Network = MLP) -> None:
        super().__init__()
        self.latent_shape, self.shape = as_shape(latent_dim, "latent_dim"), as_shape(shape)
        self.network = network(self.latent_shape, (*([self.numbers] if self.numbers else []), *self.shape))

    def output(self, z: Tensor) -> Tensor:
        """Return the network's output for z, of shape (\\*batch, \\*shape) or (\\*batch, numbers, \\*shape)."""
        check_event_shape(z, self.latent_shape, f"decoders.{type(self).__name__}", "z")
        return self.network(z)

    def outputs(self, z: Tensor) -> tuple[Tensor, ...]:
        """Return the ``numbers`` outputs of the network for z, each of shape (\\*batch, \\*shape)."""
        return self.output(z).unbind(-1 - len(self.shape))
