"""Denoising autoencoder against VAE: noise on the input against noise on the code.

The denoising autoencoder has a guide whose encoder sees a noisy datum, and a model that still observes the clean one.
"""

from pathlib import Path

import torch
from torch import nn

from pyro_vae import VAE, data, decoders, encoders, fit, plots, priors

SHAPE, LATENT_DIM, NOISE = (1, 8, 8), 10, 0.4


class Spoiled(nn.Module):
    """An encoder that, during training, sees x with normal noise on every pixel."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, x):
        return self.encoder(x + NOISE * torch.randn_like(x) if self.training else x)


def main(epochs=100, out=Path("pictures")):
    digits = data.load("digits")
    torch.manual_seed(2)
    clean = digits.test[:10]
    noisy = clean + NOISE * torch.randn_like(clean)
    out.mkdir(parents=True, exist_ok=True)
    for name, encoder, beta in (
        ("denoising autoencoder", Spoiled(encoders.Delta(SHAPE, LATENT_DIM)), 0.0),
        ("VAE", encoders.Normal(SHAPE, LATENT_DIM), 1.0),
    ):
        vae = VAE(priors.Normal(LATENT_DIM), encoder, decoders.Bernoulli(LATENT_DIM, SHAPE, grey=True))
        fit(vae.model, vae.guide, digits.train, epochs=epochs, batch_size=64, beta=beta)
        vae.eval()
        restored = vae.reconstruct(noisy)
        error = (restored - clean).square().mean().sqrt().item()
        print(f"{name}: root mean squared error {error:.3f} from noisy to clean pixels (the noise: {NOISE})")
        figure = plots.reconstructions(noisy, restored, f"{name}: noisy digits and what it makes of them")
        (out / f"denoising_{name.replace(' ', '_')}.png").write_bytes(plots.png(figure))


if __name__ == "__main__":
    main()
