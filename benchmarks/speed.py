"""Seconds per epoch of MNIST, 784-400-20: `fit`, the hand-coded twin, and the way of PyTorch's example script.

python -m benchmarks.speed --data-root DIR [--batch-size 128] [--rounds 5] [--json FILE]

All train on grey pixels with Adam, in alternating rounds in one process. The twin and `fit` have the data in memory and
index it. PyTorch's example (examples/vae of its repository) has each image pass ToTensor in a DataLoader, two linear
heads, and the cross-entropy of a sigmoid; the last row has only its DataLoader, before the twin. `fit` reports loss,
reconstruction and KL, and the others add up their loss, as a user would have it. The time of `fit` is that of a second
epoch: in the first it makes its recording, in a fifth of a second, and compiles it if asked to, in 3 to 20 seconds (the
longer the first time on a machine).
"""

import argparse
import json
import time
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy
from torch.utils.data import DataLoader

from benchmarks import machine
from pyro_vae import VAE, baseline, data, decoders, encoders, fit, priors

SHAPE, LATENT_DIM = (1, 28, 28), 20
plain_adam = partial(torch.optim.Adam, lr=1e-3)
fused_adam = partial(torch.optim.Adam, lr=1e-3, fused=True)


def vae():
    torch.manual_seed(0)
    decoder = decoders.Bernoulli(LATENT_DIM, SHAPE, grey=True)
    return VAE(priors.Normal(LATENT_DIM), encoders.Normal(SHAPE, LATENT_DIM), decoder)


def train_twin(batches, optimizer):
    parts = vae()
    twin = baseline.VAE(parts.encoder.network, parts.decoder.network)
    optim, total = optimizer(twin.parameters()), 0.0
    start = time.perf_counter()
    for batch in batches():
        total += twin.step(optim, batch, torch.randn(len(batch), LATENT_DIM)).item()
    return time.perf_counter() - start


class ExampleVAE(nn.Module):
    """The model of PyTorch's example script, in our words."""

    def __init__(self):
        super().__init__()
        self.hidden, self.mean, self.log_variance = nn.Linear(784, 400), nn.Linear(400, 20), nn.Linear(400, 20)
        self.decoder = nn.Sequential(nn.Linear(20, 400), nn.ReLU(), nn.Linear(400, 784), nn.Sigmoid())

    def loss(self, x):
        features = self.hidden(x).relu()
        mean, log_variance = self.mean(features), self.log_variance(features)
        z = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        kl = (mean**2 + log_variance.exp() - 1 - log_variance).sum() / 2
        return binary_cross_entropy(self.decoder(z), x, reduction="sum") + kl


def train_example(loader):
    model, total = ExampleVAE(), 0.0
    optim = plain_adam(model.parameters())
    start = time.perf_counter()
    for batch, _ in loader:
        optim.zero_grad()
        loss = model.loss(batch.flatten(1))
        loss.backward()
        total += loss.item()
        optim.step()
    return time.perf_counter() - start


def train_fit(x, optimizer, batch_size, engine):
    """Train for two epochs; the second is timed."""
    pair = vae()
    history = fit(pair.model, pair.guide, x, epochs=2, batch_size=batch_size, optimizer=optimizer, engine=engine)
    return history[2]["seconds"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    x = data.load("mnist", arguments.data_root).train
    size = arguments.batch_size
    datasets = data.import_torchvision_datasets()
    from torchvision.transforms import ToTensor  # after the datasets, whose import mends what may be missing

    images = datasets.MNIST(arguments.data_root, train=True, transform=ToTensor())
    loader = DataLoader(images, batch_size=size, shuffle=True)

    def in_memory():
        return data.shuffled_batches(x, size, torch.Generator())

    ways = {
        "hand-coded twin, Adam": lambda: train_twin(in_memory, plain_adam),
        "hand-coded twin, fused Adam": lambda: train_twin(in_memory, fused_adam),
        "fit, Adam": lambda: train_fit(x, plain_adam, size, "auto"),
        "fit, fused Adam (its default)": lambda: train_fit(x, fused_adam, size, "auto"),
        "fit, fused Adam, without a recording": lambda: train_fit(x, fused_adam, size, "eager"),
        "fit, fused Adam, compiled": lambda: train_fit(x, fused_adam, size, "compiled"),
        "PyTorch's example: DataLoader, ToTensor, Adam": lambda: train_example(loader),
        "twin with that DataLoader, Adam": lambda: train_twin(lambda: (batch for batch, _ in loader), plain_adam),
    }
    seconds = {name: [] for name in ways}
    for round_number in range(arguments.rounds + 1):
        for name, way in ways.items():
            took = way()
            if round_number:  # the first round warms up
                seconds[name].append(took)
    rows = [{"way": name, "seconds_per_epoch": median(times)} for name, times in seconds.items()]
    print(f"MNIST, 784-400-20, batch {size}, medians of {arguments.rounds} alternating rounds; {machine()}\n")
    print(f"| way | seconds per epoch | to the twin | to the twin, fused | to PyTorch's example |\n|{' --- |' * 5}")
    for row in rows:
        names = ("ratio_to_twin", "ratio_to_fused_twin", "ratio_to_example")
        for name, index in zip(names, (0, 1, 6), strict=True):
            row[name] = row["seconds_per_epoch"] / rows[index]["seconds_per_epoch"]
        ratios = " | ".join(f"{row[name]:.2f}" for name in names)
        print(f"| {row['way']} | {row['seconds_per_epoch']:.2f} | {ratios} |")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
