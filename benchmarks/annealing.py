"""Time of annealed importance sampling on MNIST's test images, 784-400-20.

python -m benchmarks.annealing [--data-root DIR] [--images 100] [--chains 16] [--steps 1000] [--json FILE]

The VAE is untrained; the time does not depend on its weights. It contains everything: recording or compiling the step,
tuning the step sizes by chains of their own, and annealing.
"""

import argparse
import json
import time
from pathlib import Path

import torch

from benchmarks import machine, print_row
from benchmarks.memory import peak
from pyro_vae import VAE, ais, data, decoders, encoders, priors

SHAPE, LATENT_DIM = (1, 28, 28), 20


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", help="where MNIST lies; else as pyro_vae.data.load")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--chains", type=int, default=16)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    vae = VAE(priors.Normal(LATENT_DIM), encoders.Normal(SHAPE, LATENT_DIM), decoders.Bernoulli(LATENT_DIM, SHAPE))
    x = data.threshold(data.load("mnist", arguments.data_root).test)[: arguments.images]
    start = time.perf_counter()
    ais(vae.model, vae.guide, x, chains=arguments.chains, steps=arguments.steps)
    row = {
        "images": len(x),
        "chains": arguments.chains,
        "steps": arguments.steps,
        "seconds": time.perf_counter() - start,
        "peak_gib": peak() / 2**30,
    }
    print(f"784-400-20; {machine()}\n")
    print_row(["images", "chains", "steps", "seconds", "peak, GiB"], row)
    if arguments.json:
        arguments.json.write_text(json.dumps(row | {"machine": machine()}, indent=2) + "\n")


if __name__ == "__main__":
    main()
