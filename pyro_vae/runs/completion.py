"""Missing entries of data, filled in by a trained run; hidden ones show how well."""

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_vae import plots
from pyro_vae.arguments import as_number
from pyro_vae.data.numpy_files import SUFFIXES, read_rows
from pyro_vae.diagnostics.imputation import Imputation, impute
from pyro_vae.diagnostics.likelihood import log_likelihood
from pyro_vae.diagnostics.observed import on_observed, takes_nan, with_gaps
from pyro_vae.plots import Figure
from pyro_vae.programs import Program, seeded
from pyro_vae.programs.seeds import noise_seed
from pyro_vae.runs.experiment import Experiment
from pyro_vae.vae import VAE

HALVES = ("upper", "lower", "left", "right")
ROWS = 10_000  # that are averaged together
SHOWN, DRAWN = 8, 5  # data in a picture, and draws of each


@dataclass(frozen=True)
class Completion:
    """How entries are drawn; see `pyro_vae.impute`."""

    by: str = "importance"
    draws: int = 20
    samples: int = 1000
    steps: int = 200
    memory: str = "2GB"
    seed: int = 0
    progress: bool = False

    def of(self, vae: VAE, x: Tensor, mean: Tensor | None = None) -> Imputation:
        """Return incomplete data completed; see `guide_of` for the mean."""
        return impute(vae.model, guide_of(vae, x, mean), x, **vars(self))


def guide_of(vae: VAE, x: Tensor, mean: Tensor | None = None) -> Program:
    """Return a guide that has a mean in the place of missing entries, if there is one and the encoder takes no NaN."""
    return vae.guide if mean is None or takes_nan(vae.guide, (with_gaps(x),)) else partial(_filled, vae.guide, mean)


def _filled(guide: Program, mean: Tensor, x: Tensor) -> Any:
    return guide(torch.where(x.isnan(), mean, x))


def hidden(x: Tensor, what: str, seed: int) -> Tensor:
    """Return data with some entries hidden, as NaN.

    Arguments:
        x: data, shape (N, \\*shape).
        what: a half of pictures, "upper", "lower", "left" or "right"; or the share of all entries, chosen at random,
            above 0 and below 1.
        seed: random seed of the choice.

    Raises:
        ValueError: for anything else, and for halves of data that are no pictures.

    Example:
        >>> hidden(torch.zeros(1, 1, 2, 2), "lower", seed=0).isnan().flatten().tolist()
        [False, False, True, True]
    """
    gone = torch.zeros_like(x, dtype=torch.bool)
    if what in HALVES:
        if x.dim() < 3 or x.shape[1:-2] not in ((), (1,), (3,)):  # as they are drawn
            raise ValueError(
                f"data of shape {tuple(x.shape[1:])} are no pictures with halves: hide a share, such as 0.5, or"
                " save them with their channels first"
            )
        height, width = (size // 2 for size in x.shape[-2:])
        rows, columns = slice(None), slice(None)
        if what in ("upper", "lower"):
            rows = slice(height) if what == "upper" else slice(height, None)
        else:
            columns = slice(width) if what == "left" else slice(width, None)
        gone[..., rows, columns] = True
    else:
        with seeded(noise_seed(noise_seed(seed)), x.device):  # not the noise that made the data, or imputes them
            gone = torch.rand_like(x) < _share(what)
    return x.masked_fill(gone, math.nan)


def _share(what: str) -> float:
    try:
        share = as_number(float(what), "a share")
    except (TypeError, ValueError):
        share = math.nan
    if not 0 < share < 1:
        raise ValueError(f"what is hidden is {', '.join(HALVES)}, or a share above 0 and below 1, not {what!r}")
    return share


def mean_of_training(experiment: Experiment) -> Tensor:
    """Return the mean of the training data, as the programs see them."""
    train, shape = experiment.data.train, (2, *experiment.shape)
    total, known = torch.zeros(shape, dtype=torch.float64, device=experiment.device)
    for start in range(0, len(train), ROWS):
        x = experiment.as_seen(train[start : start + ROWS])
        total, known = total + x.double().nansum(0), known + (~x.isnan()).sum(0)
    return (total / known).nan_to_num().float()


def measured(
    experiment: Experiment,
    x: Tensor,
    incomplete: Tensor,
    found: Imputation,
    mean: Tensor,
    seed: int,
    memory: int | str = "2GB",
) -> dict[str, float]:
    """Return how well hidden entries are found.

    Arguments:
        experiment: the run's experiment.
        x: the data, as the programs see them.
        incomplete: the data with entries hidden.
        found: the data completed.
        mean: that of the training data.
        seed: random seed of the likelihoods.
        memory: limit for the tensors of their samples.

    Returns:
        The mean squared errors of the means and of the training data's mean, and the spread of the draws; unless pixels
        are grey, the log-likelihood of the hidden entries given the others in nats per datum, and its standard error.
    """
    truth = x.cpu()
    gone = incomplete.isnan().cpu() & ~truth.isnan()  # of the others nobody knows what is right
    if not gone.any():
        raise ValueError(f"no known entry of these {len(x)} data is hidden: hide a larger share, or of more data")
    plain = mean.cpu().expand_as(truth)

    def error(completed: Tensor) -> float:
        return (completed - truth)[gone].double().square().mean().item()

    figures = {
        "mean_squared_error": error(found.mean[0]),
        "mean_squared_error_of_the_mean": error(plain),
        "deviation": found.deviation[0][gone].square().mean().sqrt().item(),
    }
    if not experiment.is_grey:
        vae, settings = experiment.vae, dict[str, Any](seed=seed, memory=memory)
        whole = log_likelihood(vae.model, vae.guide, x, per_datum=True, **settings)
        programs = on_observed(vae.model, guide_of(vae, x, mean), incomplete)
        seen = log_likelihood(*programs, incomplete, per_datum=True, **settings)
        errors = whole.standard_error.square() + seen.standard_error.square()
        figures["log_likelihood_of_hidden"] = (whole.estimate - seen.estimate).mean().item()
        figures["standard_error"] = errors.sum().sqrt().item() / len(x)
    return figures


def rows_of(path: str, shape: list[int]) -> Tensor:
    """Read incomplete data, all rows in the order of their file, in at least 32 bits.

    Arguments:
        path: a .npy file, or a .npz file with one array.
        shape: that of one datum of the run.

    Raises:
        ValueError: for other files, data of another shape, and data without a missing entry.
    """
    if Path(path).suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path} cannot have missing entries: give a .npy or .npz file, with NaN where one is missing")
    rows = read_rows(Path(path))
    if list(rows.shape[1:]) != shape:
        raise ValueError(f"{path} has data of shape {list(rows.shape[1:])}, but the run was trained on {shape}")
    if not (rows.is_floating_point() and rows.isnan().any()):
        raise ValueError(f"no entry of {path} is missing (NaN): --hide hides some of the run's test data")
    return rows.to(torch.promote_types(rows.dtype, torch.float32))  # what is filled in may not fit into 16 bits


def completions_figure(incomplete: Tensor, found: Imputation, title: str, original: Tensor | None = None) -> Figure:
    """Draw the first incomplete data beside their completions."""
    first = incomplete.isnan().flatten(1).any(1).nonzero()[:SHOWN, 0].cpu()
    known = None if original is None else original.cpu()[first]
    return plots.completions(incomplete.cpu()[first], found.mean[0][first], found.draws[0][:DRAWN, first], known, title)
