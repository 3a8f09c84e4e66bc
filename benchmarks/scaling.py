r"""What a step costs on several processes: measured at 1 and 2 ranks here, and extended to more by a model.

python -m benchmarks.scaling [--batch-size 128] [--rounds 5] [--bandwidth GB/S --latency MICROSECONDS]

The model is 784-400-20 on random images. Each rank has one thread and a whole batch, and `fit` records its steps. Every
step sums the gradients, S bytes, over R ranks; in a ring each rank sends 2 (R - 1) messages of S / R bytes,

    all-reduce(R) = 2 (R - 1) / R * S / bandwidth + 2 (R - 1) * latency,     step(R) = compute + own + all-reduce(R),

where "compute" is the time of a step on a single rank, and "own" the further time that two ranks take: for copying the
gradients into one tensor and back, for waiting for the slower rank, and for sharing the machine. Bandwidth and latency
are measured with two ranks here, from sums of one number and of S bytes; or the flags give those of a network, for the
rows of the model.
"""

import argparse
import time
from functools import partial
from statistics import median

import torch
from lightning_fabric import Fabric

from benchmarks import machine
from pyro_vae import VAE, decoders, encoders, fit, priors
from pyro_vae.runtime.distributed import Ranks

STEPS, SUMS = 150, 200
MODELLED = (8, 64, 1024)


def measure(fabric, batch_size):
    """Return the seconds of a step, of a sum of one number and of a step's sum, and the bytes of the latter."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    ranks = Ranks(fabric)
    vae = VAE(priors.Normal(20), encoders.Normal(784, 20), decoders.Bernoulli(20, 784, grey=True))
    x = torch.rand(STEPS * batch_size * ranks.size, 784)
    history = fit(vae.model, vae.guide, x, epochs=2, batch_size=batch_size, engine="recorded", fabric=fabric)
    parameters = list(vae.parameters())
    numbers = sum(parameter.numel() + 1 for parameter in parameters) + 5  # gradients, their flags, terms and a count
    sums = [seconds_of(partial(ranks.sum, torch.zeros(count))) for count in (1, numbers)]
    return history[2]["seconds"] / STEPS, *sums, 4 * numbers


def seconds_of(function):
    times = []
    for _ in range(SUMS):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return median(times)


def all_reduce(ranks, size, bandwidth, latency):
    return 2 * (ranks - 1) / ranks * size / bandwidth + 2 * (ranks - 1) * latency


def last_that_pays(efficiency):
    """Return the largest number of ranks, up to a million, whose efficiency is at least one half."""
    low, high = 1, 2**20
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if efficiency(middle) >= 0.5 else (low, middle - 1)
    return low


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bandwidth", type=float, metavar="GB/S", help="of a network, in place of the measured one")
    parser.add_argument("--latency", type=float, metavar="MICROSECONDS", help="likewise")
    arguments = parser.parse_args()
    found = {1: [], 2: []}
    for _ in range(arguments.rounds):
        for ranks, rows in found.items():
            fabric = Fabric(accelerator="cpu", devices=ranks, strategy="ddp_spawn")
            rows.append(fabric.launch(measure, arguments.batch_size))
    compute, *_ = (median(column) for column in zip(*found[1], strict=True))
    step, small, large, size = (median(column) for column in zip(*found[2], strict=True))
    own = max(0.0, step - compute - large)
    latency = small / 2 if arguments.latency is None else arguments.latency / 1e6
    bandwidth = size / max(large - small, 1e-9) if arguments.bandwidth is None else arguments.bandwidth * 1e9

    def modelled(ranks):
        return all_reduce(ranks, size, bandwidth, latency)

    def row(ranks, source, reduced, seconds):
        together = ranks * compute / seconds
        cut = compute / (compute / ranks + seconds - compute)
        sent = 2 * (ranks - 1) / ranks * size / 1e6
        rate = f"{ranks * arguments.batch_size / seconds:,.0f}"
        numbers = f"{sent:.2f} | {1e3 * compute:.2f} | {1e3 * reduced:.2f} | {1e3 * seconds:.2f} | {rate}"
        print(f"| {ranks:,} | {source} | {numbers} | {together:.2f} | {together / ranks:.2f} | {cut:.2f} |")

    names = "compute, ms | all-reduce, ms | step, ms | images per second | speed-up | efficiency | batch cut"
    print(
        f"784-400-20, batch {arguments.batch_size} for each rank, 1 thread each, medians of {arguments.rounds} rounds;"
    )
    print(f"{size / 1e6:.2f} MB summed at each step; own {1e3 * own:.2f} ms; model: {bandwidth / 1e9:.2f} GB/s and")
    print(f"{1e6 * latency:.0f} microseconds; {machine()}\n")
    print(f"| ranks | | MB sent by each | {names} |\n|{' --- |' * 10}")
    row(1, "measured", 0.0, compute)
    row(2, "measured", large, step)
    for ranks in MODELLED:
        row(ranks, "model", modelled(ranks), compute + own + modelled(ranks))
    last = last_that_pays(lambda ranks: compute / (compute + (ranks > 1) * own + modelled(ranks)))
    print(f"\nEfficiency is at least one half up to {last:,} ranks.")


if __name__ == "__main__":
    main()
