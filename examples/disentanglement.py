"""Codes of pictures whose factors are known: does each hold one factor, and do two trainings find the same codes?

The same VAE is trained on sprites of every shape, scale and place, by the evidence lower bound, and with a weight on
the total correlation of its codes (beta-TCVAE). Each training is repeated; the scores are the means of both.
"""

import torch
from pyro.infer import Trace_ELBO

from pyro_vae import VAE, data, decoders, encoders, fit, priors
from pyro_vae.diagnostics.consistency import consistency
from pyro_vae.diagnostics.disentanglement import disentanglement
from pyro_vae.diagnostics.encoding import code_means
from pyro_vae.objectives import BetaTC

SHAPE, DIM = (1, 16, 16), 6


def trained(images, loss, epochs, seed):
    torch.manual_seed(seed)
    vae = VAE(priors.Normal(DIM), encoders.Normal(SHAPE, DIM), decoders.Bernoulli(DIM, SHAPE))
    fit(vae.model, vae.guide, images, loss=loss, epochs=epochs, batch_size=64, seed=seed)
    return code_means(vae.model, vae.guide, images)


def main(epochs=200):
    images, factors, _ = data.sprites()
    print("objective    MIG   SAP   disentanglement  completeness  informativeness  FactorVAE  R^2   MCC")
    for name, loss in (("ELBO", Trace_ELBO()), ("beta-TC, 6", BetaTC(6.0))):
        codes = [trained(images, loss, epochs, seed) for seed in range(2)]
        scores = torch.tensor([disentanglement(each, factors)[:6] for each in codes]).mean(0)
        columns = zip((4, 4, 15, 12, 15, 9, 4, 4), [*scores.tolist(), *consistency(*codes)[1:]], strict=True)
        print(f"{name:11}", *(f"{value:<{width}.2f}" for width, value in columns), sep="  ")


if __name__ == "__main__":
    main()
