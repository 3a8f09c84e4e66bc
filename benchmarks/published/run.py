"""Runs a row within a budget: times some steps, trains for the epochs that fit, and measures until the time is over."""

import math
import time
from itertools import pairwise
from statistics import median

import torch

from benchmarks import machine
from benchmarks.published.rows import ROWS
from pyro_vae.training import StopTraining

STEPS, SECONDS = 100, 20.0  # of the trial that times a recipe, at most
HEADER = ("row", "number", "published", "held against", "set-up", "schedule", "budget", "seconds", "machine")


def run(name, load, minutes, seed=None):
    """Return the line of the table for a row.

    Arguments:
        name: the row.
        load: returns the data of a name.
        minutes: the budget.
        seed: the random seed; by default that of the row's config.
    """
    row, start = ROWS[name], time.perf_counter()
    full = row.recipe(name, load, seed=seed)
    per_epoch = seconds_per_epoch(full)
    left = row.training * (60 * minutes - (time.perf_counter() - start))
    epochs = max(1, min(full.epochs, int(left / per_epoch)))
    recipe = row.recipe(name, load, epochs, seed)
    history = recipe.fit()
    if history.interrupted:  # it would not be the training that the line names
        raise KeyboardInterrupt
    found, count = measured(row, recipe, history, start + 60 * minutes)
    schedule = f"{epochs:,} of {full.epochs:,} epochs; {count:,} of {min(row.most, len(recipe.judged)):,} data measured"
    seconds = f"{time.perf_counter() - start:.0f}"
    number, verdict = in_words(found), held_against(row, found)
    return (
        "| "
        + " | ".join(
            (name, number, row.published, verdict, row.setup, schedule, f"{minutes:g} min", seconds, machine())
        )
        + " |"
    )


def seconds_per_epoch(recipe):
    """Return the time of an epoch, from the second half of some steps on the first data."""
    size, times = recipe.settings["batch_size"], []

    def on_step(*_):
        times.append(time.perf_counter())
        if len(times) >= STEPS or (len(times) > 4 and times[-1] - times[0] > SECONDS):
            raise StopTraining

    few = recipe.train[: STEPS * size]
    recipe.fit(train=few, epochs=math.ceil(STEPS * size / len(few)), on_step=on_step)
    steps = [after - before for before, after in pairwise(times)]
    return median(steps[len(steps) // 2 :]) * math.ceil(len(recipe.train) / size)


def measured(row, recipe, history, deadline):
    """Measure a chunk of the data after the other, until the next one would end after the deadline; one at least.

    Returns:
        The values by name, and the number of data.
    """
    found, count = [], 0
    for x in recipe.judged[: row.most].split(row.chunk):
        start = time.perf_counter()
        found.append(row.measure(recipe, history, x))
        count += len(x)
        if 2 * time.perf_counter() - start > deadline:
            break
    return {name: torch.cat([values[name] for values in found]).double() for name in found[0]}, count


def in_words(found):
    """Return the means of values, with their standard errors over the data if there are several."""
    texts = []
    for name, values in found.items():
        error = f" ± {values.std().item() / math.sqrt(len(values)):.2g}" if len(values) > 1 else ""
        texts.append(f"{name} {values.mean().item():.{4 if name == 'mean squared error' else 2}f}{error}")
    return "; ".join(texts)


def held_against(row, found):
    """Say whether the number of a row reaches the published one."""
    if row.goal is None:
        return "no goal"
    beyond = found[row.key].mean().item() - row.goal
    goal = f"{row.key} at most {row.goal:g}"
    return f"{goal}: reached" if beyond <= 0 else f"{goal}: missed by {beyond:.2g}"


def append(path, line):
    """Add a line to the table at the end of a file; a file that is not there gets its head."""
    if not path.exists():
        path.write_text(f"| {' | '.join(HEADER)} |\n|{' --- |' * len(HEADER)}\n")
    with path.open("a") as file:
        file.write(line + "\n")
