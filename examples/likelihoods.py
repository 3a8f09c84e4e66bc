"""Binary cross-entropy against normal likelihoods. Their bounds have different units: compare pixels, not nats."""

from pathlib import Path

import torch

from pyro_vae import VAE, data, decoders, encoders, fit, plots, priors

SHAPE, LATENT_DIM = (1, 8, 8), 10


def main(epochs=100, out=Path("pictures")):
    digits = data.load("digits")
    panels = {"test digits": digits.test[:16]}
    for name, decoder in (
        ("cross-entropy", decoders.Bernoulli(LATENT_DIM, SHAPE, grey=True)),
        ("normal, scale 1", decoders.Normal(LATENT_DIM, SHAPE)),
        ("normal, learned scale", decoders.Normal(LATENT_DIM, SHAPE, learned=True)),
    ):
        torch.manual_seed(0)
        vae = VAE(priors.Normal(LATENT_DIM), encoders.Normal(SHAPE, LATENT_DIM), decoder)
        history = fit(vae.model, vae.guide, digits.train, validation=digits.test, epochs=epochs, batch_size=64)
        restored = vae.reconstruct(digits.test)
        error = (restored - digits.test).square().mean().sqrt().item()
        kl = history[-1]["test_kl"]
        print(f"{name}: root mean squared error {error:.3f} per pixel, KL {kl:.2f} nats per image")
        panels[name] = restored[:16]
    out.mkdir(parents=True, exist_ok=True)
    (out / "likelihoods.png").write_bytes(plots.png(plots.compare_samples(panels)))


if __name__ == "__main__":
    main()
