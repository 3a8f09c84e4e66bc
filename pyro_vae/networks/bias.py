"""Networks whose output starts from a known one."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from pyro_vae.networks.shapes import Network, as_shape


class _OutputBias(nn.Module):
    """A network, and a learned bias of the shape of its output."""

    def __init__(
        self, in_shape: int | Sequence[int], out_shape: int | Sequence[int], network: Network, bias: Tensor
    ) -> None:
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
    """Return a builder of networks to whose output a bias is added, learned from where it starts.

    Started at the data's mean, or at its logits, a decoder need not learn first what all data have in common.

    Arguments:
        network: builds the network.
        bias: where the bias starts, of the shape of one output.

    Returns:
        What builds such a network.

    Raises:
        ValueError: when it builds, where the bias is not of the shape of one output.

    Example:
        >>> from pyro_vae.networks import MLP
        >>> x = torch.rand(100, 1, 8, 8)
        >>> logits = x.mean(0).clamp(0.01, 0.99).logit()
        >>> with_output_bias(MLP, logits)(20, (1, 8, 8))(torch.zeros(5, 20)).shape
        torch.Size([5, 1, 8, 8])
    """
    return partial(_OutputBias, network=network, bias=bias)
