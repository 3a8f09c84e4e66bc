"""Fully connected networks."""

import math
from itertools import pairwise

from torch import nn

from pyro_vae.arguments import as_flag, as_function
from pyro_vae.networks._network import _Network
from pyro_vae.networks.shapes import Sizes, as_shape


class MLP(_Network):
    r"""Fully connected network with one activation between its layers, or with gates.

    .. math:: h = A x \odot \sigma(B x) \quad \text{for each hidden layer, where gated}

    Arguments:
        in_shape: shape of one input; its dimensions are flattened.
        out_shape: shape of one output.
        hidden: width of each hidden layer, each at least 1; empty for a linear map.
        activation: the module class between the layers, unless they are gated.
        gated: make each hidden layer a product of a linear map with the sigmoid of another.

    Returns:
        ``forward`` maps (\*batch, \*in_shape) to (\*batch, \*out_shape).

    Raises:
        TypeError: for sizes that are not integers.
        ValueError: for a size below 1.

    Example:
        >>> import torch
        >>> MLP((1, 28, 28), (2, 20), hidden=(400,))(torch.zeros(5, 3, 1, 28, 28)).shape
        torch.Size([5, 3, 2, 20])

    Reference:
        Dauphin, Fan, Auli and Grangier, 2017, Language Modeling with Gated Convolutional Networks, equation 1; Tomczak
        and Welling, 2018, VAE with a VampPrior, section 5.
    """

    def __init__(
        self,
        in_shape: Sizes,
        out_shape: Sizes,
        hidden: Sizes = (400,),
        activation: type[nn.Module] = nn.ReLU,
        gated: bool = False,
    ) -> None:
        super().__init__(in_shape, out_shape)
        self.hidden = () if hidden in ((), []) else as_shape(hidden, "hidden")
        widths = (math.prod(self.in_shape), *self.hidden)
        as_function(activation, "activation"), as_flag(gated, "gated")
        layers: list[nn.Module] = []
        for width, next_width in pairwise(widths):
            layers += (
                [nn.Linear(width, 2 * next_width), nn.GLU()] if gated else [nn.Linear(width, next_width), activation()]
            )
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], math.prod(self.out_shape)))
