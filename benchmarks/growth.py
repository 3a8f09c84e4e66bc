"""What a long training leaves behind: resident memory, file handles and threads, from the 500th step to the last.

python -m benchmarks.growth [--steps 10000] [--engines eager recorded compiled] [--json FILE]

A small VAE is trained on digits with batches of 16, in one process for each engine. The numbers are taken after garbage
collection.
"""

import argparse
import gc
import json
import multiprocessing
import os
import threading
from pathlib import Path

import torch

from benchmarks import machine
from pyro_vae import VAE, data, decoders, encoders, fit, priors

SHAPE, BATCH_SIZE, FIRST = (1, 8, 8), 16, 500


def held():
    """Return resident megabytes, open files and threads of this process."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20, len(os.listdir("/proc/self/fd")), threading.active_count()


def train(engine, steps):
    """Train, and return what the process held after the first steps and after the last, and how steps were run."""
    torch.set_num_threads(1)  # tensors here are small
    x = data.load("digits").train
    vae = VAE(priors.Normal(2), encoders.Normal(SHAPE, 2), decoders.Bernoulli(2, SHAPE, grey=True))
    found = []

    def on_step(step, _):
        if step + 1 in (FIRST, steps):
            found.append(held())

    epochs = -(-steps * BATCH_SIZE // len(x))
    history = fit(vae.model, vae.guide, x, epochs=epochs, batch_size=BATCH_SIZE, engine=engine, on_step=on_step)
    return *found, history.engine


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--engines", nargs="+", default=["eager", "recorded", "compiled"])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    print(f"digits, batch {BATCH_SIZE}, {arguments.steps:,} steps; {machine()}\n")
    print(f"| engine | MB after {FIRST} steps | MB at the end | growth | open files | threads | how |\n|{' --- |' * 7}")
    rows = []
    for engine in arguments.engines:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            first, last, how = pool.apply(train, (engine, arguments.steps))
        rows.append({"engine": engine, "first": first, "last": last, "how": how})
        counts = [f"{before} to {after}" for before, after in zip(first[1:], last[1:], strict=True)]
        cells = [engine, *[f"{number:.1f}" for number in (first[0], last[0], last[0] - first[0])], *counts, how]
        print(f"| {' | '.join(cells)} |", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
