"""Parts that a config names where no flag of `pyro-vae train` says it: networks with tanh or ELU, or without layers.

pyro-vae train --config benchmarks/published/vae-1.yaml --allow benchmarks.published.parts --data-root DIR
"""

from bisect import bisect_right
from functools import partial

from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from pyro_vae import decoders, encoders
from pyro_vae.networks import MLP

TANH = partial(MLP, hidden=(200, 200), activation=nn.Tanh)
ELU = partial(MLP, hidden=(200, 200), activation=nn.ELU)
DEEP = partial(MLP, hidden=(200,) * 4, activation=nn.ELU)
LINEAR = partial(MLP, hidden=())
STAGES = 1, 4, 13, 40, 121, 364, 1093  # the epochs of 3,280 at which the learning rate falls


def in_stages(epochs):
    """Return the schedule of Burda et al. (2016): rates 10^(-i/7) for 3^i epochs, i = 0 to 7, squeezed into fewer."""
    return partial(LambdaLR, lr_lambda=lambda epoch: 10 ** (-bisect_right(STAGES, epoch * 3280 / epochs) / 7))


class TanhEncoder(encoders.Normal):
    """A normal encoder of two layers of 200 units with tanh."""

    def __init__(self, shape, latent_dim):
        super().__init__(shape, latent_dim, TANH)


class TanhDecoder(decoders.Bernoulli):
    """A Bernoulli decoder of two layers of 200 units with tanh."""

    def __init__(self, latent_dim, shape):
        super().__init__(latent_dim, shape, TANH)


class TanhNormalDecoder(decoders.Normal):
    """A normal decoder of two layers of 200 units with tanh, with a learned variance."""

    def __init__(self, latent_dim, shape):
        super().__init__(latent_dim, shape, TANH, scale=0.2, learned=True)


class EluEncoder(encoders.Normal):
    """A normal encoder of two layers of 200 units with ELU."""

    def __init__(self, shape, latent_dim):
        super().__init__(shape, latent_dim, ELU)


class EluDecoder(decoders.Bernoulli):
    """A Bernoulli decoder of two layers of 200 units with ELU."""

    def __init__(self, latent_dim, shape):
        super().__init__(latent_dim, shape, ELU)


class DeepEluDecoder(decoders.Bernoulli):
    """A Bernoulli decoder of four layers of 200 units with ELU."""

    def __init__(self, latent_dim, shape):
        super().__init__(latent_dim, shape, DEEP)


class LinearBinaryEncoder(encoders.RelaxedOneHotCategorical):
    """A linear encoder of binary codes, each a one-hot pair, by straight-through Gumbel-softmax draws."""

    def __init__(self, shape, latent_dim):
        super().__init__(shape, latent_dim, LINEAR, categories=2, temperature=0.5, straight_through=True)


class LinearDecoder(decoders.Bernoulli):
    """A linear Bernoulli decoder."""

    def __init__(self, latent_dim, shape):
        super().__init__(latent_dim, shape, LINEAR)
