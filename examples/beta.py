"""KL weights of 0.1, 1 and 4: sharper reconstructions against codes that look like the prior."""

from pathlib import Path

import torch

from pyro_vae import VAE, data, decoders, encoders, evaluate, fit, plots, priors

SHAPE, LATENT_DIM = (1, 8, 8), 10


def main(epochs=100, out=Path("pictures")):
    digits = data.load("digits")
    samples, reconstructions = {}, {"test digits": digits.test[:16]}
    for beta in (0.1, 1.0, 4.0):
        torch.manual_seed(0)
        decoder = decoders.Bernoulli(LATENT_DIM, SHAPE, grey=True)
        vae = VAE(priors.Normal(LATENT_DIM), encoders.Normal(SHAPE, LATENT_DIM), decoder)
        fit(vae.model, vae.guide, digits.train, epochs=epochs, batch_size=64, beta=beta)
        bound = evaluate(vae.model, vae.guide, digits.test)
        print(f"beta {beta:g}: test reconstruction {bound.reconstruction:.2f}, KL {bound.kl:.2f}, sum {bound.loss:.2f}")
        samples[f"beta {beta:g}: samples"] = vae.sample(16)
        reconstructions[f"beta {beta:g}: reconstructions"] = vae.reconstruct(digits.test[:16])
    out.mkdir(parents=True, exist_ok=True)
    (out / "beta_samples.png").write_bytes(plots.png(plots.compare_samples(samples)))
    (out / "beta_reconstructions.png").write_bytes(plots.png(plots.compare_samples(reconstructions)))


if __name__ == "__main__":
    main()
