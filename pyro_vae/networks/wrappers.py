"""Networks that wrap another network: for data with unobserved entries, and with a bias of the output."""

from functools import partial

import torch
from torch import Tensor, nn

from pyro_vae.arguments import as_flag, as_function
from pyro_vae.networks._part import Part
from pyro_vae.networks.mlp import MLP
from pyro_vae.networks.shapes import Network, Sizes, as_shape


class FillMissing(Part):
    """A network that gets 0 for each entry of its input that is NaN, and is told which, if wished.

    Arguments:
        in_shape: shape of one input.
        out_shape: shape of one output.
        network: builds the inner network, from ``in_shape``, or from (2, \\*in_shape) with ``mask``, to ``out_shape``.
        mask: add a second input, which is 1 for each observed entry and 0 for each missing one.

    Returns:
        ``forward`` maps (\\*batch, \\*in_shape) to (\\*batch, \\*out_shape).

    Example:
        >>> FillMissing((1, 8, 8), (2, 20), mask=True)(torch.full((5, 1, 8, 8), torch.nan)).isfinite().all()
        tensor(True)

    Reference:
        Nazabal, Olmos, Ghahramani and Valera, 2020, Handling Incomplete Heterogeneous Data using VAEs, section 3.1.
    """

    def __init__(self, in_shape: Sizes, out_shape: Sizes, network: Network = MLP, mask: bool = False) -> None:
        super().__init__()
        self.in_shape, self.mask = as_shape(in_shape, "in_shape"), as_flag(mask, "mask")
        self.network = as_function(network, "network")(
            (*([2] if mask else []), *self.in_shape), as_shape(out_shape, "out_shape")
        )

    def forward(self, x: Tensor) -> Tensor:
        missing = x.isnan()
        filled = x.masked_fill(missing, 0.0)
        return self.network(
            torch.stack([filled, (~missing).to(x)], x.dim() - len(self.in_shape)) if self.mask else filled
        )


class _OutputBias(nn.Module):
    """A network whose output gets a learned bias of the same shape."""

    def __init__(self, in_shape: Sizes, out_shape: Sizes, network: Network, bias: Tensor) -> None:
        super().__init__()
        in_shape, out_shape = as_shape(in_shape, "in_shape"), as_shape(out_shape, "out_shape")
        if bias.shape != out_shape:
            raise ValueError(
                f"the output has shape {out_shape}, but its bias {tuple(bias.shape)}: give one to each number"
            )
        self.network = network(in_shape, out_shape)
        self.bias = nn.Parameter(bias.detach().to(torch.get_default_dtype(), copy=True))

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x) + self.bias


def with_output_bias(network: Network, bias: Tensor) -> Network:
    """Return a builder of networks whose output gets a bias, which is learned from a given start.

    If it starts at the data's mean, or at its logits, a decoder need not first learn what all data have in common.

    Arguments:
        network: builds the network.
        bias: where the bias starts, of the shape of one output.

    Returns:
        A function that builds such a network.

    Raises:
        ValueError: when it builds, if the bias does not have the shape of one output.

    Example:
        >>> from pyro_vae.networks import MLP
        >>> x = torch.rand(100, 1, 8, 8)
        >>> logits = x.mean(0).clamp(0.01, 0.99).logit()
        >>> with_output_bias(MLP, logits)(20, (1, 8, 8))(torch.zeros(5, 20)).shape
        torch.Size([5, 1, 8, 8])
    """
    return partial(_OutputBias, network=network, bias=bias)
