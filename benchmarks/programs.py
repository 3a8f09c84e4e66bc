"""Pyro programs as they are, trained by `fit` and by Pyro's SVI: whether they end in the same place, and how fast.

python -m benchmarks.programs [--originals FOLDER] [--programs NAME ...] [--engines NAME ...] [--rounds 5]

The rows are the programs of `examples/`; with --originals, also those of Pyro's examples and tutorials, unchanged, from
a checkout of its repository (`benchmarks.originals` says with which data).

SVI is `pyro.infer.SVI` with `pyro.optim.Adam`. `fit` divides a loss by the number of data in its batch. This changes
nothing in Adam except the effect of its epsilon, so that SVI's epsilon is multiplied by this number. Both take the same
batches in the same order, with the same seed. After 50 steps the losses are compared, by their largest relative
difference, and the parameters, by the norm of a parameter's difference relative to its norm.

Each way of training has its own process. After the first 50 steps, in which steps are recorded and compiled, the
processes take turns of 20 steps, while the others sleep; times are medians over the rounds.
"""

import argparse
import itertools
import multiprocessing
import runpy
import time
import warnings
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from statistics import median

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO

from benchmarks import machine
from benchmarks.originals import ORIGINALS, Case
from pyro_vae import fit
from pyro_vae.data.batch import arguments, count_of, map_tensors, tensors_of
from pyro_vae.training import StopTraining

EXAMPLES = Path(__file__).parents[1] / "examples"
STEPS, TURN, SEED, RATE, EPSILON = 50, 20, 3, 1e-3, 1e-8
OWN = {  # the number of data of a batch, and that of all data if a plate scales the loss of a batch to them
    "conditional_vae": (128, None),
    "semi_supervised_vae": (64, None),
    "deep_markov_model": (16, None),
    "topic_model": (128, None),
    "count_vae": (128, None),
    "attend_infer_repeat": (64, None),
    "sparse_gamma": (128, None),
    "bayesian_regression": (32, 128),
    "two_level_vae": (128, None),
    "flow_prior": (128, None),
}


class Ready:
    """Ready batches, as a `DataLoader` without shuffling gives them."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


def ready(found, size):
    """Cut data into batches; ready ones stay as they are."""
    if not (
        isinstance(found, torch.Tensor | dict) or (isinstance(found, tuple) and isinstance(found[0], torch.Tensor))
    ):
        return list(found)
    indices = torch.arange(len(tensors_of(found)[0])).split(size)
    return [map_tensors(lambda part, rows=rows: part[rows], found) for rows in indices]


def own(name):
    """Return the case of one of our examples."""
    example, (size, total) = runpy.run_path(str(EXAMPLES / f"{name}.py")), OWN[name]

    def make():
        if "make" in example:
            return example["make"]()
        found = example["Programs"]() if "Programs" in example else None
        return (found.model, found.guide) if found else (example["model"], example["guide"])

    return Case(make, ready(example["batches"](), size), example.get("LOSS", Trace_ELBO()), total)


def case_of(name, folder):
    return own(name) if name in OWN else ORIGINALS[name](folder)


def made(case):
    """Make the programs of a case, which are the same in each process."""
    pyro.clear_param_store()
    torch.manual_seed(0)
    return case.make()


def train_by_svi(case, turns):
    """Train as Pyro's examples do."""
    model, guide = made(case)
    count = case.total or (case.count or count_of)(case.batches[0])
    svi = SVI(model, guide, pyro.optim.Adam({"lr": RATE, "eps": EPSILON * count, "fused": True}), case.loss)
    pyro.enable_validation(False)
    args, kwargs = arguments(case.batches[0])
    for store in (pyro.get_param_store().scope(), nullcontext()):  # first set up guides, then make their parameters
        torch.manual_seed(SEED)
        with store:
            svi.evaluate_loss(*args, **kwargs)
    torch.manual_seed(SEED)
    for batch in itertools.cycle(case.batches):
        args, kwargs = arguments(batch)
        loss = svi.step(*args, **kwargs) / count
        turns(loss, [parameter for parameter, optim in svi.optim.optim_objs.items() if optim.state])


def train_by_fit(engine, case, turns):
    """Train by `fit`, and return how its steps were run."""
    model, guide = made(case)
    optims = []

    def optimizer(parameters):
        optims.append(torch.optim.Adam(parameters, lr=RATE, eps=EPSILON, fused=True))
        return optims[-1]

    def on_step(_, loss):
        turns(loss, optims[-1].state)

    how = {"optimizer": optimizer, "seed": SEED, "engine": engine, "count": case.count, "on_step": on_step}
    return fit(model, guide, Ready(case.batches), loss=case.loss, epochs=turns.last, **how).engine


WAYS = {"SVI": train_by_svi, **{engine: partial(train_by_fit, engine) for engine in ("eager", "recorded", "compiled")}}


class Turns:
    """A function to call after each step, which ends a turn after some of them and waits for the next turn."""

    def __init__(self, connection, rounds):
        self.connection, self.losses, self.last = connection, [], STEPS + rounds * TURN
        self.wait()

    def wait(self):
        self.connection.recv()
        self.start = time.perf_counter()

    def __call__(self, loss, parameters):
        self.losses.append(float(loss))
        step = len(self.losses)
        if step == STEPS:
            self.connection.send((self.losses, [each.detach().clone() for each in parameters]))
        elif step > STEPS and not (step - STEPS) % TURN:
            self.connection.send((time.perf_counter() - self.start) / TURN)
        else:
            return
        if step == self.last:
            raise StopTraining
        self.wait()


def work(connection, name, folder, way, rounds):
    """Train in one way, in a process of its own, one turn whenever told to; an error is sent as one line."""
    torch.set_num_threads(1)  # tensors here are small
    warnings.simplefilter("ignore")  # lines below the table say how steps are run
    turns = Turns(connection, rounds)
    try:
        connection.send(WAYS[way](case_of(name, folder), turns))
    except StopTraining:  # raised in SVI's training; `fit` catches it itself
        connection.send("")
    except Exception as error:
        connection.send(f"{type(error).__name__}: {error}".splitlines()[0])


def begin(name, folder, way, rounds):
    """Start a process, and return it with the connection to it."""
    context = multiprocessing.get_context("forkserver")
    here, there = context.Pipe()
    process = context.Process(target=work, args=(there, name, folder, way, rounds), daemon=True)
    process.start()
    there.close()  # so that recv() notices the end of the process
    return process, here


def told(worker):
    """Let a process have its turn, and return what it sends."""
    try:
        worker[1].send("go")
        return worker[1].recv()
    except (EOFError, OSError):
        return "the process ended"


def difference(found, expected):
    """Return the largest relative difference of losses, and of parameters, which are matched by shape and values."""
    (losses, parameters), (others, rights) = found, expected
    share = max(abs(one - other) / (abs(other) or 1) for one, other in zip(losses, others, strict=True))
    pairs = zip(
        *(sorted(each, key=lambda p: (p.shape, p.flatten().tolist())) for each in (parameters, rights)), strict=True
    )
    return share, max(float((one - other).norm() / other.norm().clamp(min=1e-30)) for one, other in pairs)


def measure(workers, rounds):
    """Return for each way what it sends after the first steps, its median time, and how its steps were run."""
    first = {way: told(worker) for way, worker in workers.items()}
    trained = [way for way in workers if not isinstance(first[way], str)]
    if "SVI" not in trained:
        return first, {}, {}
    seconds = {way: [] for way in trained}
    for _, way in itertools.product(range(rounds), trained):
        if not isinstance(first[way], str):
            found = told(workers[way])
            if isinstance(found, str):
                first[way] = found
            else:
                seconds[way].append(found)
    trained = [way for way in trained if not isinstance(first[way], str)]
    return (
        first,
        {way: median(seconds[way]) for way in trained},
        {way: workers[way][1].recv() for way in trained},
    )


def row(name, folder, engines, rounds):
    """Return the cells of a program's row, and lines about steps that were not run as asked."""
    workers = {way: begin(name, folder, way, rounds) for way in ("SVI", *engines)}
    try:
        first, seconds, how = measure(workers, rounds)
    finally:
        for process, _ in workers.values():
            process.kill()
    refused = {way: found for way, found in first.items() if isinstance(found, str)}
    shares = {way: difference(first[way], first["SVI"]) for way in engines if way in seconds}
    refusal = "; ".join(dict.fromkeys(refused.values()))
    cells = [name, ("yes" if not refused else f"yes, but not {', '.join(refused)}") if shares else refusal]
    cells += ["{:.0e}, {:.0e}".format(*shares[way]) if way in shares else "-" for way in engines]
    cells.append(f"{1000 * seconds['SVI']:.2f}" if seconds else "-")
    cells += [f"{seconds[way] / seconds['SVI']:.2f}" if way in shares else "-" for way in engines]
    others = {way: how[way] for way in shares if not how[way].startswith(way)} | (refused if shares else {})
    return cells, [f"{name}, {way}: {line}" for way, line in others.items()]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--originals", type=Path, metavar="FOLDER", help="a checkout of Pyro's repository")
    parser.add_argument("--programs", nargs="+", metavar="NAME", help="of these rows alone (default: all)")
    parser.add_argument("--engines", nargs="+", default=["eager", "recorded", "compiled"])
    parser.add_argument("--rounds", type=int, default=5)
    settings = parser.parse_args()
    multiprocessing.get_context("forkserver").set_forkserver_preload(["benchmarks.originals"])  # imports all, once
    names = list(OWN) + (list(ORIGINALS) if settings.originals else [])
    print(f"Medians of {settings.rounds} alternating rounds of {TURN} steps; {machine()}\n")
    columns = [f"{engine}: losses, parameters" for engine in settings.engines]
    columns += ["SVI, ms per step", *[f"{engine}, to SVI" for engine in settings.engines]]
    print(f"| program | as it is | {' | '.join(columns)} |\n|{' --- |' * (2 + len(columns))}")
    notes = []
    for name in settings.programs or names:
        cells, lines = row(name, settings.originals, settings.engines, settings.rounds)
        notes += lines
        print(f"| {' | '.join(cells)} |", flush=True)
    print("\n" + "\n".join(notes))


if __name__ == "__main__":
    main()
