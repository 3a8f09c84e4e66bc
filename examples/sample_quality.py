"""Draws of digits beside real ones: after a short and a long training, and means in place of draws."""

import torch

from pyro_vae import VAE, data, decoders, encoders, fit, priors
from pyro_vae.diagnostics.quality import sample_quality

SHAPE, DIM = (1, 8, 8), 10


def main(epochs=(2, 100)):
    digits = data.load("digits")
    x, labels = data.threshold(torch.cat([digits.train, digits.test])), torch.cat([*digits[2:]])
    seen, real, labels = x[:900], x[900:], labels[900:]
    print("compared with real digits   MMD p  precision  recall  Frechet")
    samples = {"other real digits": seen}
    for number in epochs:
        torch.manual_seed(0)
        vae = VAE(priors.Normal(DIM), encoders.Normal(SHAPE, DIM), decoders.Bernoulli(DIM, SHAPE))
        fit(vae.model, vae.guide, seen, epochs=number, batch_size=64)
        samples[f"draws after {number} epochs"] = vae.decoder(vae.prior().sample((900,))).sample()
    samples["means, not draws"] = vae.sample(900)
    for name, drawn in samples.items():
        found = sample_quality(real, drawn, labels=labels)
        row = f"{found.mmd_p:5.3f}  {found.precision:9.2f}  {found.recall:6.2f}  {found.frechet:7.2f}"
        print(f"{name:26}  {row}")
    print(f"the Frechet distance between real digits: {found.frechet_of_real:.2f}")


if __name__ == "__main__":
    main()
