"""The comparisons of the literature on MNIST, at a small budget: one command a row.

python -m benchmarks.research ROW [--data-root DIR] [--minutes 20 | --epochs N] [--json FILE]

In every row, pixels are binarized at random for each batch (test images only once), and the VAE is trained by Adam with
batches of 100. Unless a row says otherwise, the learning rate is 5e-4, with 40 latent dimensions and gated networks of
2 x 300. `log p` is the importance-weighted estimate with 5,000 samples on every tenth test image, in nats per image.

The number of epochs is computed beforehand, from the time that a copy of the VAE takes for the first 6,000 images. The
KL warm-up then knows its end, and `--epochs` repeats a row. If not even one epoch fits, the row is trained for one
epoch on the first images, as many as fit.
"""

import argparse
import copy
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from pyro.infer import ELBO, Trace_ELBO, TraceMeanField_ELBO

from benchmarks import machine
from pyro_vae import VAE, data, decoders, encoders, fit, log_likelihood, priors
from pyro_vae.networks import MLP
from pyro_vae.objectives import IWAE, DReG, StickingTheLanding, linear_warm_up
from pyro_vae.programs import seeded

SHAPE, BATCH_SIZE, SAMPLES = (1, 28, 28), 100, 5000
GATED = partial(MLP, hidden=(300, 300), gated=True)


@dataclass
class Recipe:
    """A row: how to build its VAE from training data, its objective, the share of warm-up steps, Adam's rate."""

    setup: str
    build: Callable[[torch.Tensor], VAE]
    loss: ELBO
    warm_up: float = 0.0
    rate: float = 5e-4


def normal(_):
    return VAE(priors.Normal(40), encoders.Normal(SHAPE, 40, GATED), decoders.Bernoulli(40, SHAPE, GATED))


def vamp_prior(x):
    encoder = encoders.Normal(SHAPE, 40, GATED)
    return VAE(priors.VampPrior(encoder, 500, x), encoder, decoders.Bernoulli(40, SHAPE, GATED))


def flow_prior(_):
    return VAE(priors.Flow(40, "RealNVP"), encoders.Normal(SHAPE, 40, GATED), decoders.Bernoulli(40, SHAPE, GATED))


def flow_encoder(transform, _):
    encoder = encoders.Flow(SHAPE, 40, GATED, transform=transform)
    return VAE(priors.Normal(40), encoder, decoders.Bernoulli(40, SHAPE, GATED))


def gumbel(_):
    annealed = {"temperature": 1.0, "final_temperature": 0.5, "anneal_steps": 24_000, "straight_through": True}
    encoder = encoders.RelaxedOneHotCategorical(SHAPE, 20, partial(MLP, hidden=(512, 256)), **annealed)
    decoder = decoders.Bernoulli((20, 10), SHAPE, partial(MLP, hidden=(256, 512)))
    return VAE(priors.OneHotCategorical(20), encoder, decoder)


def sphere(_):
    encoder = encoders.PowerSpherical(SHAPE, 11, partial(MLP, hidden=(256, 128)))
    decoder = decoders.Bernoulli(11, SHAPE, partial(MLP, hidden=(128, 256)))
    return VAE(priors.HypersphericalUniform(11), encoder, decoder)


RECIPES = {
    "normal-prior": Recipe("normal prior and encoder", normal, Trace_ELBO(), 0.1),
    "vamp-prior": Recipe("VampPrior of 500 pseudo-inputs, from training data", vamp_prior, Trace_ELBO(), 0.1),
    "flow-prior": Recipe("prior of 3 RealNVP couplings", flow_prior, Trace_ELBO(), 0.1),
    "iaf-encoder": Recipe("encoder of 2 IAF steps", partial(flow_encoder, "IAF"), Trace_ELBO(), 0.1),
    "nsf-encoder": Recipe("encoder of 2 spline steps", partial(flow_encoder, "NSF"), Trace_ELBO(), 0.1),
    "plain": Recipe("normal, no warm-up of the KL", normal, Trace_ELBO()),
    "iwae-5": Recipe("normal, IWAE of 5 particles", normal, IWAE(5)),
    "dreg-5": Recipe("normal, DReG of 5 particles", normal, DReG(5)),
    "stl": Recipe("normal, sticking the landing", normal, StickingTheLanding()),
    "gumbel-20x10": Recipe(
        "20 straight-through Gumbel-softmax codes of 10, temperature 1 to 0.5 in 24,000 steps, 784-512-256, rate 1e-3",
        gumbel,
        TraceMeanField_ELBO(),
        warm_up=0.1,
        rate=1e-3,
    ),
    "sphere-10": Recipe("power spherical on S^10, the sphere in 11 dimensions, 784-256-128", sphere, Trace_ELBO(), 0.1),
}


@dataclass
class Row:
    """The results of a row: bounds and log-likelihood in nats per image, times in minutes."""

    row: str
    setup: str
    epochs: int
    train_images: int
    warm_up_steps: int
    train_bound_before: float
    train_bound: float
    log_p: float
    test_images: int
    training_minutes: float
    evaluation_minutes: float
    seed: int

    def __str__(self):
        warm_up = f", KL warm-up of {self.warm_up_steps} steps" if self.warm_up_steps else ""
        bounds = f"{self.train_bound_before:.2f} to {self.train_bound:.2f}"
        minutes = f"{self.training_minutes:.1f} + {self.evaluation_minutes:.1f}"
        epochs = f"{self.epochs}" if self.train_images == 60_000 else f"1 of {self.train_images:,} images"
        cells = f"{self.setup}{warm_up}", epochs, bounds, f"{self.log_p:.2f}", minutes
        return f"| {' | '.join((self.row, *cells))} |"


def train(vae, recipe, x, epochs, seed):
    """Train, and return the history and the number of steps of KL warm-up."""
    steps = epochs * math.ceil(len(x) / BATCH_SIZE)
    warm_up = round(recipe.warm_up * steps)
    adam = partial(torch.optim.Adam, lr=recipe.rate, fused=True)
    settings = {"loss": recipe.loss, "optimizer": adam, "transform": data.dynamic, "seed": seed}
    beta = linear_warm_up(warm_up) if warm_up else 1.0
    history = fit(vae.model, vae.guide, x, epochs=epochs, batch_size=BATCH_SIZE, beta=beta, **settings)
    return history, warm_up


def seconds_per_epoch(vae, recipe, x, seed):
    """Return the time of an epoch, extrapolated from a tenth of one, which a copy is trained for."""
    tenth = x[: len(x) // 10]
    history, _ = train(copy.deepcopy(vae), recipe, tenth, 1, seed)
    return history[-1]["seconds"] * len(x) / len(tenth)


def run(name, mnist, minutes, epochs=None, seed=0):
    """Train and evaluate a row."""
    recipe = RECIPES[name]
    with seeded(seed, mnist.train.device):
        vae, test = recipe.build(mnist.train), data.dynamic(mnist.test)[::10]
    epochs = epochs or 60 * minutes / seconds_per_epoch(vae, recipe, mnist.train, seed)
    x = mnist.train[: max(BATCH_SIZE, int(epochs * len(mnist.train)))]
    start = time.perf_counter()
    history, warm_up = train(vae, recipe, x, max(1, int(epochs)), seed)
    trained = time.perf_counter()
    log_p = log_likelihood(vae.model, vae.guide, test, samples=SAMPLES)
    times = (trained - start) / 60, (time.perf_counter() - trained) / 60
    bounds = -history[0]["train_loss"], -history[-1]["train_loss"]
    return Row(name, recipe.setup, int(history[-1]["epoch"]), len(x), warm_up, *bounds, log_p, len(test), *times, seed)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("row", choices=RECIPES)
    parser.add_argument("--data-root", help="where MNIST lies; else as pyro_vae.data.load")
    parser.add_argument("--minutes", type=float, default=20.0, help="of training")
    parser.add_argument("--epochs", type=int, help="instead of minutes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    row = run(
        arguments.row, data.load("mnist", arguments.data_root), arguments.minutes, arguments.epochs, arguments.seed
    )
    print(f"MNIST, dynamic binarization, Adam, batch 100, seed {row.seed}; {machine()}\n")
    print("| row | set-up | epochs | train bound | log p | minutes, training + evaluation |")
    print(f"|{' --- |' * 6}\n{row}")
    if arguments.json:
        arguments.json.write_text(json.dumps(asdict(row) | {"machine": machine()}, indent=2) + "\n")


if __name__ == "__main__":
    main()
