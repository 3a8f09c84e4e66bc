"""A VAE with two levels of codes, p(z2) p(z1|z2) p(x|z1), and a guide in the same order, q(z2|x) q(z1|z2, x).

What x and what z2 say about z1 are combined by their precisions, as in a ladder VAE.

Source: Sønderby et al., 2016, Ladder Variational Autoencoders.
"""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from pyro_vae import data, fit
from pyro_vae.networks import MLP

UPPER, LOWER = 2, 6


def normal(output):
    loc, log_scale = output.unbind(-2)
    return dist.Normal(loc, log_scale.exp()).to_event(1)


def product(one, other):
    """Return the normal distribution whose density is proportional to the product of two normal densities."""
    precision = 1 / one.variance + 1 / other.variance
    loc = (one.mean / one.variance + other.mean / other.variance) / precision
    return dist.Normal(loc, precision.rsqrt()).to_event(1)


class Programs(nn.Module):
    def __init__(self):
        super().__init__()
        self.prior, self.decoder = MLP(UPPER, (2, LOWER)), MLP(LOWER, 64)  # p(z1|z2), p(x|z1)
        self.upper, self.lower = MLP(64, (2, UPPER)), MLP(64, (2, LOWER))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(torch.zeros(UPPER), 1.0).to_event(1))
            z1 = pyro.sample("z1", normal(self.prior(z2)))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z1)).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("programs", self)
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", normal(self.upper(x)))
            pyro.sample("z1", product(normal(self.lower(x)), normal(self.prior(z2))))


def batches():
    return data.threshold(data.load("digits").train)[:1024].flatten(1)


def main(epochs=20):
    torch.manual_seed(0)
    programs = Programs()
    history = fit(programs.model, programs.guide, batches(), epochs=epochs)
    print(f"{history[-1]['train_loss']:.2f} nats per image")


if __name__ == "__main__":
    main()
