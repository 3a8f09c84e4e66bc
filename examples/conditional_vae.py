"""A conditional VAE: the lower half of a digit given its upper half, p(y|x, z), trained on pairs (x, y)."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from pyro_vae import data, fit
from pyro_vae.networks import MLP

LATENT = 4


class Programs(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = MLP(64, (2, LATENT)), MLP(32 + LATENT, 32)

    def model(self, x, y):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(LATENT), 1.0).to_event(1))
            logits = self.decoder(torch.cat([x.expand(*z.shape[:-1], 32), z], -1))
            pyro.sample("y", dist.Bernoulli(logits=logits).to_event(1), obs=y)

    def guide(self, x, y):
        pyro.module("programs", self)
        with pyro.plate("data", len(x)):
            loc, log_scale = self.encoder(torch.cat([x, y], -1)).unbind(-2)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def batches():
    digits = data.threshold(data.load("digits").train)[:1024].flatten(1)
    return digits[:, :32], digits[:, 32:]


def main(epochs=20):
    torch.manual_seed(0)
    programs = Programs()
    history = fit(programs.model, programs.guide, batches(), epochs=epochs)
    print(f"{history[-1]['train_loss']:.2f} nats per lower half")


if __name__ == "__main__":
    main()
