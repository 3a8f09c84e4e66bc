"""A neural topic model for bags of words, with batch normalization and dropout in both networks."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from pyro_vae import fit

TOPICS, WORDS = 5, 40


class Programs(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(WORDS, 32),
            nn.Softplus(),
            nn.Dropout(0.2),
            nn.Linear(32, 2 * TOPICS, bias=False),
            nn.BatchNorm1d(2 * TOPICS),
        )
        self.decoder = nn.Sequential(nn.Dropout(0.2), nn.Linear(TOPICS, WORDS, bias=False), nn.BatchNorm1d(WORDS))

    def model(self, counts):
        with pyro.plate("documents", len(counts)):
            z = pyro.sample("z", dist.Normal(torch.zeros(TOPICS), 1.0).to_event(1))
            words = dist.Multinomial(logits=self.decoder(z.softmax(-1)), validate_args=False)
            pyro.sample("words", words, obs=counts)

    def guide(self, counts):
        pyro.module("programs", self)
        with pyro.plate("documents", len(counts)):
            loc, log_scale = self.encoder(counts).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, (log_scale / 2).exp()).to_event(1))


def batches():
    generator = torch.Generator().manual_seed(0)
    rates = torch.rand(4, WORDS, generator=generator).pow(4) * 5
    return torch.poisson(rates[torch.randint(0, 4, (512,), generator=generator)], generator=generator)


def main(epochs=20):
    torch.manual_seed(0)
    programs = Programs()
    history = fit(programs.model, programs.guide, batches(), epochs=epochs)
    print(f"{history[-1]['train_loss']:.2f} nats per document")


if __name__ == "__main__":
    main()
