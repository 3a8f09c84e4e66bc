"""A VAE whose prior is a flow of zuko, wrapped for Pyro by ZukoToPyro."""

import pyro
import pyro.distributions as dist
import torch
import zuko
from pyro.contrib.zuko import ZukoToPyro
from torch import nn

from pyro_vae import data, fit
from pyro_vae.networks import MLP

LATENT = 4


class Programs(nn.Module):
    def __init__(self):
        super().__init__()
        self.prior = zuko.flows.MAF(LATENT, transforms=2, hidden_features=(16,))
        self.encoder, self.decoder = MLP(64, (2, LATENT)), MLP(LATENT, 64)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", ZukoToPyro(self.prior()))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("programs", self)
        with pyro.plate("data", len(x)):
            loc, log_scale = self.encoder(x).unbind(-2)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def batches():
    return data.threshold(data.load("digits").train)[:1024].flatten(1)


def main(epochs=20):
    torch.manual_seed(0)
    programs = Programs()
    history = fit(programs.model, programs.guide, batches(), epochs=epochs)
    print(f"{history[-1]['train_loss']:.2f} nats per image")


if __name__ == "__main__":
    main()
