"""A VAE on handwritten digits, as two Pyro programs. Read it beside vae_torch.py: they print the same numbers.

sdiff -w 200 examples/vae_torch.py examples/vae_pyro.py
"""

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Trace_ELBO
from torch import nn

from pyro_vae import data
from pyro_vae.networks import MLP


class VAE(nn.Module):
    def __init__(self, shape, latent_dim):
        super().__init__()
        self.latent_dim = latent_dim
        self.encoder = MLP(shape, (2, latent_dim))
        self.decoder = MLP(latent_dim, shape)

    def model(self, x):
        with pyro.plate("data", len(x)):
            prior = dist.Normal(torch.zeros(self.latent_dim), 1.0).to_event(1)
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(3), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            mean, log_variance = self.encoder(x).unbind(-2)
            pyro.sample("z", dist.Normal(mean, (log_variance / 2).exp()).to_event(1))

    def loss(self, x):
        return Trace_ELBO().differentiable_loss(self.model, self.guide, x)


def main(epochs=20, batch_size=64, seed=0):
    x = data.threshold(data.load("digits").train)
    torch.manual_seed(seed)
    vae = VAE(tuple(x.shape[1:]), latent_dim=10)
    optimizer = torch.optim.Adam(vae.parameters(), lr=1e-3)
    losses = []
    for epoch in range(epochs):
        total = 0.0
        for batch in x[torch.randperm(len(x))].split(batch_size):
            loss = vae.loss(batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        losses.append(total / len(x))
        print(f"epoch {epoch + 1}: {losses[-1]:.2f} nats per image")
    return losses


if __name__ == "__main__":
    main()
