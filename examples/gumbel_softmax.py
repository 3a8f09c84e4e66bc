"""Codes of four variables with ten categories: by the Gumbel-softmax trick, and by the score function with VIMCO.

A relaxed code has a gradient through the draw, at a falling temperature, but it belongs to another, continuous model. A
straight-through code is rounded: the model is the discrete one, and the gradient is that of the relaxed code. A
discrete code has no gradient through the draw, so VIMCO uses the score function. All three are evaluated as the model
that they stand for: one with one-hot codes, whose probabilities are given by the trained network's logits.
"""

from pathlib import Path

import torch
from pyro.infer import TraceMeanField_ELBO

from pyro_vae import VAE, data, decoders, encoders, evaluate, fit, plots, priors
from pyro_vae.objectives import VIMCO, linear_warm_up

SHAPE, VARIABLES = (1, 8, 8), 4


def relaxed(straight_through, steps):
    return encoders.RelaxedOneHotCategorical(
        SHAPE,
        VARIABLES,
        temperature=1.0,
        final_temperature=0.4,
        anneal_steps=steps,
        straight_through=straight_through,
    )


def main(epochs=50, out=Path("pictures")):
    digits = data.load("digits")
    discrete = priors.OneHotCategorical(VARIABLES)
    near = priors.RelaxedOneHotCategorical(VARIABLES, temperature=0.4)
    steps = epochs * -(-len(digits.train) // 64)
    # Relaxed codes have a high density near the corners. Without a warm-up they lose their content before it is used.
    warm_up = {"beta": linear_warm_up(steps // 2)}
    ways = {
        "relaxed": (near, relaxed(False, steps), warm_up),
        "straight-through": (discrete, relaxed(True, steps), {"loss": TraceMeanField_ELBO()}),
        "discrete, VIMCO": (discrete, encoders.OneHotCategorical(SHAPE, VARIABLES), {"loss": VIMCO(5)}),
    }
    reconstructions, samples = {"test digits": digits.test[:16]}, {}
    for name, (prior, encoder, how) in ways.items():
        torch.manual_seed(0)
        vae = VAE(prior, encoder, decoders.Bernoulli((VARIABLES, 10), SHAPE, grey=True))
        fit(vae.model, vae.guide, digits.train, epochs=epochs, batch_size=64, **how)
        judged = VAE(discrete, encoders.OneHotCategorical(SHAPE, VARIABLES), vae.decoder)
        judged.encoder.network = encoder.network
        bound = evaluate(judged.model, judged.guide, digits.test)
        print(f"{name}: negative bound of the one-hot codes {bound.loss:.2f} nats, of which KL {bound.kl:.2f}")
        samples[f"{name}: samples"] = judged.sample(16)
        reconstructions[f"{name}: {bound.loss:.2f} nats"] = judged.reconstruct(digits.test[:16], mean=False)
    out.mkdir(parents=True, exist_ok=True)
    for name, panels in (("samples", samples), ("reconstructions", reconstructions)):
        (out / f"gumbel_softmax_{name}.png").write_bytes(plots.png(plots.compare_samples(panels)))


if __name__ == "__main__":
    main()
