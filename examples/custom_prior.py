"""A custom prior: any module whose call returns a distribution. Here, a mixture of ten normals on a ring."""

import math
from pathlib import Path

import pyro.distributions as dist
import torch
from torch import nn

from pyro_vae import VAE, data, decoders, encoders, fit, plots, priors

SHAPE = (1, 8, 8)


class Ring(nn.Module):
    def __init__(self, hills=10, radius=3.0):
        super().__init__()
        angles = torch.arange(hills) * (2 * math.pi / hills)
        self.register_buffer("centres", radius * torch.stack([angles.cos(), angles.sin()], -1))

    def forward(self):
        return dist.MixtureSameFamily(
            dist.Categorical(logits=torch.zeros_like(self.centres[:, 0])),
            dist.Normal(self.centres, 0.5).to_event(1),
        )


def main(epochs=100, out=Path("pictures")):
    digits = data.load("digits")
    panels = {}
    for name, prior in (("standard normal prior", priors.Normal(2)), ("ring of ten hills", Ring())):
        torch.manual_seed(0)
        vae = VAE(prior, encoders.Normal(SHAPE, 2), decoders.Bernoulli(2, SHAPE, grey=True))
        history = fit(vae.model, vae.guide, digits.train, validation=digits.test, epochs=epochs, batch_size=64)
        print(f"{name}: test loss {history[-1]['test_loss']:.2f}, KL {history[-1]['test_kl']:.2f} nats per image")
        posterior = vae.encoder(digits.test)
        panels[name] = posterior.mean, posterior.variance.diag_embed()
    out.mkdir(parents=True, exist_ok=True)
    figure = plots.latent_map(panels, digits.test_labels)
    (out / "custom_prior.png").write_bytes(plots.png(figure))


if __name__ == "__main__":
    main()
