"""A deep Markov model: sequences of different lengths, each with a mask of the steps that it has."""

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import nn

from pyro_vae import fit
from pyro_vae.networks import MLP

LATENT, NOTES = 3, 8


class Programs(nn.Module):
    def __init__(self):
        super().__init__()
        self.transition, self.emission = MLP(LATENT, (2, LATENT)), MLP(LATENT, NOTES)
        self.rnn, self.combiner = nn.GRU(NOTES, 8, batch_first=True), MLP(LATENT + 8, (2, LATENT))

    def model(self, x, mask):
        with pyro.plate("data", len(x)):
            z = x.new_zeros(len(x), LATENT)
            for t in range(x.shape[1]):
                with poutine.mask(mask=mask[:, t]):
                    loc, log_scale = self.transition(z).unbind(-2)
                    z = pyro.sample(f"z{t}", dist.Normal(loc, log_scale.exp()).to_event(1))
                    pyro.sample(f"x{t}", dist.Bernoulli(logits=self.emission(z)).to_event(1), obs=x[:, t])

    def guide(self, x, mask):
        pyro.module("programs", self)
        seen = self.rnn(x.flip(1))[0].flip(1)  # states that have seen their own step and all later ones
        with pyro.plate("data", len(x)):
            z = x.new_zeros(len(x), LATENT)
            for t in range(x.shape[1]):
                with poutine.mask(mask=mask[:, t]):
                    loc, log_scale = self.combiner(torch.cat([z, seen[:, t]], -1)).unbind(-2)
                    z = pyro.sample(f"z{t}", dist.Normal(loc, log_scale.exp()).to_event(1))


def batches():
    """Return ready batches of melodies; each batch is as long as its longest melody."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for longest in (5, 3, 4, 5):
        lengths = torch.randint(1, longest + 1, (16,), generator=generator)
        mask = torch.arange(longest) < lengths[:, None]
        notes = torch.rand(16, longest, NOTES, generator=generator) < torch.linspace(0.1, 0.9, NOTES)
        found.append((notes * mask[..., None] * 1.0, mask))
    return found


def main(epochs=20):
    torch.manual_seed(0)
    programs = Programs()
    history = fit(programs.model, programs.guide, batches(), epochs=epochs)
    print(f"{history[-1]['train_loss']:.2f} nats per sequence")


if __name__ == "__main__":
    main()
