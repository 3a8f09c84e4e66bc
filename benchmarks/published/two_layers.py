"""The importance-weighted autoencoder of two stochastic layers, p(z2) p(z1|z2) p(x|z1) and q(z1|x) q(z2|z1)."""

from functools import partial

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from benchmarks.published.parts import TANH, in_stages
from benchmarks.published.recipe import Recipe
from pyro_vae import data
from pyro_vae.networks import MLP, deviation
from pyro_vae.objectives import IWAE

EPOCHS, LOWER, UPPER = 3280, 100, 50
SMALL = partial(MLP, hidden=(100, 100), activation=nn.Tanh)


def normal(output):
    loc, log_variance = output.unbind(-2)
    return dist.Normal(loc, deviation(log_variance)).to_event(1)


class Programs(nn.Module):
    """Model and guide."""

    def __init__(self, shape):
        super().__init__()
        self.lower, self.upper = TANH(shape, (2, LOWER)), SMALL(LOWER, (2, UPPER))
        self.prior, self.decoder = SMALL(UPPER, (2, LOWER)), TANH(LOWER, shape)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(x.new_zeros(UPPER), 1.0).to_event(1))
            z1 = pyro.sample("z1", normal(self.prior(z2)))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z1)).to_event(x.dim() - 1), obs=x)

    def guide(self, x):
        pyro.module("programs", self)
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", normal(self.lower(x)))
            pyro.sample("z2", normal(self.upper(z1)))


def recipe(load, epochs=None, seed=None, particles=1):
    mnist, seed, epochs = load("mnist"), seed or 0, epochs or EPOCHS
    torch.manual_seed(seed)
    programs = Programs(tuple(mnist.train.shape[1:]))
    settings = {
        "loss": IWAE(particles),
        "optimizer": partial(torch.optim.Adam, lr=1e-3, eps=1e-4, fused=True),
        "schedule": in_stages(epochs),
        "transform": data.dynamic,
        **{"batch_size": 20, "engine": "recorded", "epochs": epochs, "seed": seed},
    }
    order = torch.randperm(len(mnist.test), generator=torch.Generator().manual_seed(0))
    test = data.dynamic(mnist.test[order])
    return Recipe(programs.model, programs.guide, mnist.train, test, epochs, settings)
