"""Known recipes on MNIST, trained by `fit`, beside the numbers that others have measured.

python -m benchmarks.published --data-root DIR [--seed 1]
"""

import argparse
import time

import torch

from benchmarks import machine
from pyro_vae import VAE, data, decoders, encoders, fit, priors

SHAPE, LATENT_DIM = (1, 28, 28), 20
RECIPES = {
    "practicum: batch 256": (256, "train 107.8 to 108.1, test 107.4 to 107.6, at the mean 98.2 to 98.4"),
    "PyTorch's example: batch 128": (128, "test 105.56 to 105.61, train 106.1 to 106.4"),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    mnist = data.load("mnist", arguments.data_root)
    print(
        "784-400-20, ReLU, Adam 1e-3, grey pixels, 10 epochs; nats per image;", f"seed {arguments.seed}; {machine()}\n"
    )
    print(f"| recipe | train | test | test at the mean | minutes | measured elsewhere |\n|{' --- |' * 6}")
    for name, (batch_size, elsewhere) in RECIPES.items():
        torch.manual_seed(arguments.seed)
        decoder = decoders.Bernoulli(LATENT_DIM, SHAPE, grey=True)
        vae = VAE(priors.Normal(LATENT_DIM), encoders.Normal(SHAPE, LATENT_DIM), decoder)
        start = time.perf_counter()
        settings = {"epochs": 10, "batch_size": batch_size, "seed": arguments.seed, "validation": mnist.test}
        last = fit(vae.model, vae.guide, mnist.train, **settings)[-1]
        minutes = (time.perf_counter() - start) / 60
        losses = " | ".join(f"{last[key]:.2f}" for key in ("train_loss", "test_loss", "test_loss_at_mean"))
        print(f"| {name} | {losses} | {minutes:.1f} | {elsewhere} |")


if __name__ == "__main__":
    main()
