"""Kill small runs at random moments, go on with each, and hold its end against that of a run that was never stopped.

python -m benchmarks.faults [--kills 200] [--seed 0] [--jobs 2] [--json FILE]

A run is ``pyro-vae train`` on digits, at two epochs per second, with a checkpoint every 60 ms within epochs. It is
ended by SIGKILL at a random time after its folder has appeared, uniformly over the time that a run takes; a run that
has ended before is not counted. In every other run each write is delayed by 20 ms, so that many writes are interrupted.
Then ``pyro-vae train --resume`` continues the run to its end. The run has survived if every byte of the weights and
every number of metrics.csv, except the seconds, is that of a run that was never stopped.

After that it measures what checkpoints cost at their default rate: their share of the time of a training, on 60,000
random images of 28x28 (784-400-20, batch 128, 10 epochs), and on 1,437 of 8x8, the shape of digits (64-400-10, batch
64, 100 epochs).
"""

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count, islice
from pathlib import Path

from benchmarks import machine

FLAGS = [
    *("--hidden=32", "--latent-dim=2", "--epochs=6", "--batch-size=16", "--latent-map=first"),
    *("--checkpoint-minutes=0.001", "--seed=3", "--data=digits"),
]
DRAWN_OUT = 0.02  # seconds of delay for each file that is written to the disk


def command(argv, slowly):
    """Run the command line without output; it is called in a process of its own."""
    import torch

    from pyro_vae import files
    from pyro_vae.cli import main

    torch.set_num_threads(1)
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    if slowly:
        fsync = os.fsync
        files.os.fsync = lambda file: (time.sleep(DRAWN_OUT), fsync(file))
    raise SystemExit(main(argv))


def start(argv, slowly=False):
    """Start a process in which everything is already imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pyro_vae.cli", "pyro_vae.runs.run", "sklearn.datasets", "torch._dynamo", "tqdm"])
    process = context.Process(target=command, args=(argv, slowly))
    process.start()
    return process


def outcome(folder):
    """Return what must be the same: the bytes of the weights, and the metrics without the seconds."""
    rows = (folder / "metrics.csv").read_text().splitlines()
    return (folder / "model.safetensors").read_bytes(), [row.rpartition(",")[0] for row in rows]


def appeared(folder, process):
    """Wait until a run's folder holds its config, or the process has ended."""
    while not (folder / "config.yaml").exists() and process.is_alive():
        time.sleep(0.001)


def whole_run(folder):
    """Train without a stop, and return the outcome and the seconds since the run's folder appeared."""
    process = start(["train", *FLAGS, f"--out={folder}"])
    appeared(folder, process)
    begun = time.perf_counter()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"the run that nothing stopped ended with code {process.exitcode}")
    return outcome(folder), time.perf_counter() - begun


def one_kill(folder, moment, slowly):
    """Kill a run at a moment and resume it; return where it was killed, and its outcome or how it failed."""
    process = start(["train", *FLAGS, f"--out={folder}"], slowly)
    appeared(folder, process)
    process.join(moment)
    where = "after its end"
    if process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        checkpoint = folder / "checkpoints" / "last.safetensors"
        where = "in training" if checkpoint.exists() else "before the first checkpoint"
        if list(folder.rglob("*.partial")):
            where = "while a file was written"
    resumed = start(["train", "--resume", str(folder)])
    resumed.join()
    return where, outcome(folder) if resumed.exitcode == 0 else f"exit code {resumed.exitcode}"


def survive(kills, seed=0, say=lambda _: None, jobs=1):
    """Return one row for each kill: where it was, and whether the run has survived it.

    Arguments:
        kills: number of kills.
        seed: random seed for their moments.
        say: function to call with each row.
        jobs: number of runs at a time.
    """
    rows, numbers = [], count()
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(jobs) as pool:
        expected, seconds = whole_run(Path(name) / "whole")

        def row(number):
            slowly, folder = bool(number % 2), Path(name) / str(number)
            moment = random.Random(f"{seed} {number}").uniform(0, seconds * (2 if slowly else 1))  # noqa: S311
            where, found = one_kill(folder, moment, slowly)
            shutil.rmtree(folder)
            return {"moment": moment, "where": where, "survived": found == expected}

        while len(rows) < kills:
            for found in pool.map(row, islice(numbers, kills - len(rows))):
                if found["where"] != "after its end" or not found["survived"]:  # else the run was not killed
                    rows.append(found)
                    say(found)
    return rows


def cost(shape, data, latent_dim, batch_size, epochs):
    """Return the seconds of a training, the number of checkpoints that it wrote, and the seconds that they took."""
    import torch

    from pyro_vae import VAE, decoders, encoders, fit, priors
    from pyro_vae.data import EightBit
    from pyro_vae.runtime.checkpoints import Checkpoints

    class Timed(Checkpoints):
        written, seconds = 0, 0.0

        def write(self, *state):
            start = time.perf_counter()
            super().write(*state)
            self.written, self.seconds = self.written + 1, self.seconds + time.perf_counter() - start

    x = EightBit(torch.randint(0, 256, (data, *shape), dtype=torch.uint8))
    prior, encoder = priors.Normal(latent_dim), encoders.Normal(shape, latent_dim)
    vae = VAE(prior, encoder, decoders.Bernoulli(latent_dim, shape, grey=True))
    with tempfile.TemporaryDirectory() as folder:
        checkpoints, start = Timed(folder), time.perf_counter()
        fit(vae.model, vae.guide, x, batch_size=batch_size, epochs=epochs, validation=x[:1000], checkpoints=checkpoints)
    return time.perf_counter() - start, checkpoints.written, checkpoints.seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    show = lambda row: print(".F"[not row["survived"]], end="", flush=True)  # noqa: E731
    rows = survive(arguments.kills, arguments.seed, show, arguments.jobs)
    print(f"\n\n{arguments.kills} kills, seed {arguments.seed}; {machine()}\n")
    print("| killed | runs | went on to the same weights and metrics |\n| --- | --- | --- |")
    for where in [*sorted({row["where"] for row in rows}), None]:
        chosen = [row for row in rows if where in (None, row["where"])]
        print(f"| {where or 'in all'} | {len(chosen)} | {sum(row['survived'] for row in chosen)} |")
    print("\n| training | seconds | checkpoints | share of the time |\n| --- | --- | --- | --- |")
    for name, how in (
        ("784-400-20", ((1, 28, 28), 60_000, 20, 128, 10)),
        ("64-400-10", ((1, 8, 8), 1_437, 10, 64, 100)),
    ):
        seconds, written, there = cost(*how)
        print(f"| {name} | {seconds:.1f} | {written} | {there / seconds:.2%} |")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
