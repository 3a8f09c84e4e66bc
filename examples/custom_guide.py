"""A custom encoder: any module whose call on x returns a distribution. Here, one whose posteriors may be tilted."""

from pathlib import Path

import pyro.distributions as dist
import torch
from torch import nn

from pyro_vae import VAE, data, decoders, fit, plots, priors
from pyro_vae.networks import MLP, positive

SHAPE = (1, 8, 8)


class Tilted(nn.Module):
    def __init__(self, shape, latent_dim):
        super().__init__()
        self.network = MLP(shape, (2 + latent_dim, latent_dim))

    def forward(self, x):
        mean, log_scale, lower = self.network(x).tensor_split([1, 2], -2)
        diagonal = positive(log_scale.squeeze(-2)).diag_embed()
        return dist.MultivariateNormal(mean.squeeze(-2), scale_tril=diagonal + lower.tril(-1))


def main(epochs=100, out=Path("pictures")):
    digits = data.load("digits")
    torch.manual_seed(0)
    vae = VAE(priors.Normal(2), Tilted(SHAPE, 2), decoders.Bernoulli(2, SHAPE, grey=True))
    history = fit(vae.model, vae.guide, digits.train, validation=digits.test, epochs=epochs, batch_size=64)
    print(f"test loss {history[-1]['test_loss']:.2f}, KL {history[-1]['test_kl']:.2f} nats per image")
    posterior = vae.encoder(digits.test)
    panels = {"posteriors of the test digits": (posterior.mean, posterior.covariance_matrix)}
    out.mkdir(parents=True, exist_ok=True)
    (out / "custom_guide.png").write_bytes(plots.png(plots.latent_map(panels, digits.test_labels)))


if __name__ == "__main__":
    main()
