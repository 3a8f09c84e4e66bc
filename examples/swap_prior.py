"""Four priors, each one argument of the same VAE: the bounds on test digits, and samples."""

from pathlib import Path

import torch

from pyro_vae import VAE, data, decoders, encoders, evaluate, fit, plots, priors
from pyro_vae.objectives import IWAE

SHAPE, LATENT_DIM = (1, 8, 8), 8


def prior_named(name, encoder, x):
    return {
        "Normal": lambda: priors.Normal(LATENT_DIM),
        "MixtureOfNormals": lambda: priors.MixtureOfNormals(LATENT_DIM, components=10),
        "Flow": lambda: priors.Flow(LATENT_DIM, "MAF", transforms=2),
        "VampPrior": lambda: priors.VampPrior(encoder, components=50, data=x),
    }[name]()


def main(epochs=30, out=Path("pictures")):
    digits = data.load("digits")
    samples = {}
    for name in ("Normal", "MixtureOfNormals", "Flow", "VampPrior"):
        torch.manual_seed(0)
        encoder = encoders.Normal(SHAPE, LATENT_DIM)
        decoder = decoders.Bernoulli(LATENT_DIM, SHAPE, grey=True)
        vae = VAE(prior_named(name, encoder, digits.train), encoder, decoder)
        fit(vae.model, vae.guide, digits.train, epochs=epochs, batch_size=64)
        bound = evaluate(vae.model, vae.guide, digits.test).loss
        tighter = evaluate(vae.model, vae.guide, digits.test, loss=IWAE(20)).loss
        print(f"{name}: negative bound on test digits {bound:.2f}, importance-weighted (20) {tighter:.2f} nats")
        samples[f"{name}: {tighter:.2f} nats"] = vae.sample(36)
    out.mkdir(parents=True, exist_ok=True)
    title = "Samples of each prior, decoded, and the importance-weighted bound of test digits by 20 particles"
    (out / "swap_prior.png").write_bytes(plots.png(plots.compare_samples(samples, title)))


if __name__ == "__main__":
    main()
