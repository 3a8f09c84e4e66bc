"""Networks for data of which some entries were not observed."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyro_vae.networks.mlp import MLP
from pyro_vae.networks.shapes import Network, as_shape


class FillMissing(nn.Module):
    """A network that gets 0 for each entry of its input that is NaN, and is told which, if wished.

    Arguments:
        in_shape: shape of one input.
        out_shape: shape of one output.
        network: builds the network behind, from ``in_shape``, or from (2, \\*in_shape) with ``mask``, to ``out_shape``.
        mask: hand over a second input, which is 1 for each observed entry and 0 for each missing one.

    Returns:
        ``forward`` maps (\\*batch, \\*in_shape) to (\\*batch, \\*out_shape).

    Example:
        >>> FillMissing((1, 8, 8), (2, 20), mask=True)(torch.full((5, 1, 8, 8), torch.nan)).isfinite().all()
        tensor(True)

    Reference:
        Nazabal, Olmos, Ghahramani and Valera, 2020, Handling Incomplete Heterogeneous Data using VAEs, section 3.1.
    """

    def __init__(
        self,
        in_shape: int | Sequence[int],
        out_shape: int | Sequence[int],
        network: Network = MLP,
        mask: bool = False,
    ) -> None:
        super().__init__()
        self.in_shape, self.mask = as_shape(in_shape, "in_shape"), mask
        self.network = network((*([2] if mask else []), *self.in_shape), as_shape(out_shape, "out_shape"))

    def forward(self, x: Tensor) -> Tensor:
        missing = x.isnan()
        filled = x.masked_fill(missing, 0.0)
        return self.network(
            torch.stack([filled, (~missing).to(x)], x.dim() - len(self.in_shape)) if self.mask else filled
        )

    def extra_repr(self) -> str:
        return f"mask={self.mask}"
