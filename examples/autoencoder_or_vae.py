"""Classic autoencoder against VAE: both decode N(0, I), but only one was trained on such codes."""

from pathlib import Path

import torch

from pyro_vae import VAE, data, decoders, encoders, evaluate, fit, plots, priors

SHAPE, LATENT_DIM = (1, 8, 8), 10


def main(epochs=100, out=Path("pictures")):
    digits = data.load("digits")
    panels = {}
    for name, encoder, beta in (("classic autoencoder", encoders.Delta, 0.0), ("VAE", encoders.Normal, 1.0)):
        torch.manual_seed(0)
        decoder = decoders.Bernoulli(LATENT_DIM, SHAPE, grey=True)
        vae = VAE(priors.Normal(LATENT_DIM), encoder(SHAPE, LATENT_DIM), decoder)
        fit(vae.model, vae.guide, digits.train, epochs=epochs, batch_size=64, beta=beta)
        reconstruction = evaluate(vae.model, vae.guide, digits.test).reconstruction
        spread = vae.encoder(digits.test).mean.std().item()
        print(f"{name}: test reconstruction {reconstruction:.2f} nats per image, codes spread {spread:.2f} around 0")
        torch.manual_seed(1)
        panels[f"{name}: decoded N(0, I)"] = vae.sample(64)
    out.mkdir(parents=True, exist_ok=True)
    (out / "autoencoder_or_vae.png").write_bytes(plots.png(plots.compare_samples(panels)))


if __name__ == "__main__":
    main()
