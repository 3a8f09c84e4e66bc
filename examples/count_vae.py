"""A VAE of counts, such as those of genes in cells, given the experiment that each cell comes from."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn
from torch.nn.functional import one_hot

from pyro_vae import fit
from pyro_vae.networks import MLP

LATENT, GENES, EXPERIMENTS = 3, 30, 2


class Programs(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = MLP(GENES + EXPERIMENTS, (2, LATENT)), MLP(LATENT + EXPERIMENTS, GENES)
        self.log_inverse_dispersion = nn.Parameter(torch.zeros(GENES))

    def model(self, counts, experiment):
        with pyro.plate("cells", len(counts)):
            z = pyro.sample("z", dist.Normal(torch.zeros(LATENT), 1.0).to_event(1))
            covariates = one_hot(experiment, EXPERIMENTS).to(counts).expand(*z.shape[:-1], EXPERIMENTS)
            share = self.decoder(torch.cat([z, covariates], -1)).log_softmax(-1)
            total = self.log_inverse_dispersion.exp()
            logits = share + counts.sum(-1, keepdim=True).log() - self.log_inverse_dispersion
            pyro.sample("counts", dist.NegativeBinomial(total, logits=logits).to_event(1), obs=counts)

    def guide(self, counts, experiment):
        pyro.module("programs", self)
        with pyro.plate("cells", len(counts)):
            inputs = torch.cat([counts.log1p(), one_hot(experiment, EXPERIMENTS).to(counts)], -1)
            loc, log_scale = self.encoder(inputs).unbind(-2)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def batches():
    generator = torch.Generator().manual_seed(0)
    experiment = torch.randint(0, EXPERIMENTS, (512,), generator=generator)
    rates = torch.rand(EXPERIMENTS, GENES, generator=generator).pow(2) * 10 + 0.5
    return {"counts": 1 + torch.poisson(rates[experiment], generator=generator), "experiment": experiment}


def main(epochs=20):
    torch.manual_seed(0)
    programs = Programs()
    history = fit(programs.model, programs.guide, batches(), epochs=epochs)
    print(f"{history[-1]['train_loss']:.2f} nats per cell")


if __name__ == "__main__":
    main()
