"""A VAE on handwritten digits, coded by hand in torch. Read it beside vae_pyro.py: they print the same numbers.

sdiff -w 200 examples/vae_torch.py examples/vae_pyro.py
"""

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from pyro_vae import data
from pyro_vae.networks import MLP


class VAE(nn.Module):
    def __init__(self, shape, latent_dim):
        super().__init__()
        self.latent_dim = latent_dim
        self.encoder = MLP(shape, (2, latent_dim))
        self.decoder = MLP(latent_dim, shape)

    def loss(self, x):
        mean, log_variance = self.encoder(x).unbind(-2)
        eps = torch.randn(len(x), self.latent_dim)
        z = mean + (log_variance / 2).exp() * eps
        kl = (z**2 - eps**2 - log_variance).sum() / 2
        reconstruction = binary_cross_entropy_with_logits(self.decoder(z), x, reduction="sum")
        return reconstruction + kl


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
