"""What codes have learned about the data, and how their distribution compares with the prior."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from scipy import stats
from torch import Tensor

from pyro_vae.arguments import as_size
from pyro_vae.data import Rows, count_in, pieces
from pyro_vae.data.batch import Batch, Count, cut
from pyro_vae.diagnostics.classifier import learned
from pyro_vae.diagnostics.distances import discrepancy
from pyro_vae.diagnostics.particles import NOT_FINITE, Particles
from pyro_vae.diagnostics.vectors import as_classes, can_be_learned, check_in_order, deviations, halves, joined
from pyro_vae.objectives.particles import on_particles
from pyro_vae.programs import Program, as_input, check_programs, mode, seeded
from pyro_vae.programs.handlers import LocalModules
from pyro_vae.programs.seeds import as_seed, noise_seed
from pyro_vae.runtime.memory import as_bytes
from pyro_vae.runtime.progress import bar

NAME = "codes"
FEWEST = 20  # data
ACTIVE = 0.01  # share of the prior's variance that the posterior means of an active dimension have
INFORMED = 0.5  # nats that codes know of the data, where no dimension is active
MOST = 2000  # data that are compared with each other
PAIRS = 2**20  # densities that are computed at a time


class Codes(NamedTuple):
    """What the codes of N data say about them.

    Attributes:
        variances: those of the posterior means over the data, in units of the prior's variance, shape (D,).
        active: the number of dimensions where this is above 0.01.
        mutual_information: between data and codes, in nats, at most log N.
        mmd: the squared maximum mean discrepancy between codes and draws from the prior, near 0 if they are alike.
        mmd_p: its p-value.
        classifier_accuracy: that of a classifier that tells codes from draws of the prior, 1/2 if they are alike.
        classifier_p: its p-value.
        neighbour_accuracy: that of labels which are predicted by the nearest neighbour's; NaN without labels, with
            a single class, and with a class for nearly each datum.
        linear_accuracy: that of labels which are predicted by a linear map of the codes; NaN like the one before.
        verdict: a sentence that says whether the posterior has collapsed, and what to try.
    """

    variances: Tensor
    active: int
    mutual_information: float
    mmd: float
    mmd_p: float
    classifier_accuracy: float
    classifier_p: float
    neighbour_accuracy: float
    linear_accuracy: float
    verdict: str


@torch.no_grad()
def codes(
    model: Program,
    guide: Program,
    data: Any,
    *,
    labels: Any = None,
    draws: int = 50,
    memory: int | str = "2GB",
    seed: int = 0,
    count: Count | None = None,
    progress: bool = False,
) -> Codes:
    r"""Measure what the codes of data have learned.

    .. math:: \mathrm{Var}_x\, \mathbb{E}_{q(z|x)}[z_d] > 0.01 \, \mathrm{Var}_p[z_d], \qquad
              I(x; z) = \frac1N \sum_n \log \frac{q(z_n|x_n)}{\frac1N \sum_m q(z_n|x_m)}, \quad z_n \sim q(z|x_n)

    Arguments:
        model: the Pyro program of p(x, z), called with a batch.
        guide: the Pyro program of q(z|x), called with a batch.
        data: what `fit` takes; at most the first 2,000 are used, as each is compared with each.
        labels: a class for each datum, as integers or texts, or None.
        draws: draws from each posterior, at least 2, whose mean is the code of a datum.
        memory: limit for the tensors of the data that are encoded together, such as "512MB". It changes the noise, as
            fewer data are then encoded together.
        seed: random seed of the noise, and of the halves of the data that classifiers learn from and are measured on;
            torch's own random state does not change.
        count: returns the number of data of a ready batch.
        progress: show a progress bar.

    Returns:
        The variances, the mutual information, two comparisons with the prior, accuracies, and a verdict.

    Raises:
        TypeError, ValueError: as for `log_likelihood`; for fewer than 20 data; for labels of another number, or with a
            loader that shuffles.

    Example:
        >>> from pyro_vae.diagnostics.estimators import linear_gaussian
        >>> vae, x = linear_gaussian(offset=0.0, factor=1.0, count=500)
        >>> found = codes(vae.model, vae.guide, x)
        >>> found.active, found.verdict
        (2, '2 of 2 dimensions of the codes are active')

    Reference:
        Of active units: Burda, Grosse and Salakhutdinov, 2016, Importance Weighted Autoencoders, section 5.2. Of the
        mutual information: Hoffman and Johnson, 2016, ELBO Surgery, section 2. Of the discrepancy: Gretton et al.,
        2012, A Kernel Two-Sample Test, equation 3. Of the classifier: Lopez-Paz and Oquab, 2017, Revisiting Classifier
        Two-Sample Tests.
    """
    as_size(draws, "draws", 2)
    budget = as_bytes(memory)
    if labels is not None:
        check_in_order(data, "the labels")
    x = as_input(data, model, guide, count=count)
    if len(x) < FEWEST:
        raise ValueError(f"{NAME} compares data with each other, at least {FEWEST} of them, not {len(x)}: give more")
    named = None if labels is None else as_classes(labels, len(x))
    count_rows, local = count_in(x), LocalModules()
    with seeded(noise_seed(seed), x.device), mode(False, model, guide):
        check_programs(model, guide, x)
        with pyro.validation_enabled(False), on_particles(NAME):
            rows = _first(x)
            particles = _Particles(local(model), local(guide), count_rows)
            particles.meet(cut(rows, 2, count_rows))
            size = particles.data_within(budget, rows, draws, MOST)
            parts = list(pieces(rows, size, count_rows))
            particles.check_repeated(parts[0], "guide", particles.log_q, "leave it out, or take code_means")
            with bar(3 * count_rows(rows), "data", shown=progress) as shown:  # drawn, compared, and simulated
                drawn = _joined([_drawn(particles, part, draws, shown.update) for part in parts], dim=1)
                information = _information(particles, parts, [value[0] for value in drawn], shown.update)
                of_prior = _joined([_simulated(particles, part, shown.update) for part in parts], dim=0)
        each = torch.cat([value.reshape(*value.shape[:2], -1).double().cpu() for value in drawn], -1)
        prior = torch.cat([value.reshape(len(value), -1).double().cpu() for value in of_prior], -1)
        means = each.mean(0)
        variances = (means.var(0) - each.var(0).mean(0) / draws).clamp(min=0)  # less that of the noise of the means
        variances = variances / deviations(prior).square()
        compared = discrepancy(each[0], prior, torch.Generator().manual_seed(as_seed(seed)))
    accuracies = (math.nan, math.nan) if named is None else _accuracies(means, named[: len(means)], seed)
    active, classified = int((variances > ACTIVE).sum()), _classified(each[0], prior, seed)
    verdict = _verdict(active, len(variances), information)
    return Codes(variances, active, information, *compared, *classified, *accuracies, verdict)


def _first(x: Rows) -> Batch:
    """Return the first data as one batch, however large the batches are in which they come."""
    parts: list[Batch] = []
    count = count_in(x)
    for part in x.split(min(MOST, len(x))):
        parts.append(part)
        if sum(map(count, parts)) >= MOST:
            break
    return cut(joined(parts, count, f"{NAME} compares data with each other"), MOST, count)


def _drawn(particles: Particles, rows: Batch, draws: int, advance: Callable[[int], Any]) -> list[Tensor]:
    """Return codes of some data, of shape (K, B, ...), or refuse data whose codes are masked or not finite."""
    particles.check_masks(rows)
    _, *values = particles.draw(rows, draws)
    finite = [value.reshape(*value.shape[:2], -1).isfinite().all(-1).all(0) for value in values]
    particles.check_finite(~torch.stack(finite).all(0), rows, "the code", NOT_FINITE)
    advance(particles.count(rows))
    return values


def _simulated(particles: Particles, rows: Batch, advance: Callable[[int], Any]) -> list[Tensor]:
    _, codes = particles.simulated(rows)
    advance(particles.count(rows))
    return codes


def _joined(parts: list[list[Tensor]], dim: int) -> list[Tensor]:
    return [torch.cat(each, dim) for each in zip(*parts, strict=True)]


def _information(
    particles: Particles, parts: list[Batch], values: list[Tensor], advance: Callable[[int], Any]
) -> float:
    """Return the mutual information between data and codes, one of each datum."""
    total, size = 0.0, len(values[0])
    chunk = max(1, PAIRS // size)
    for start in range(0, size, chunk):
        some = [value[start : start + chunk, None] for value in values]
        log_q = torch.cat([_log_q(particles, rows, some) for rows in parts], -1)
        own = log_q.diagonal(start)
        total += (own - log_q.logsumexp(1) + math.log(size)).sum().item()
        advance(len(own))
    return total / size


def _log_q(particles: Particles, rows: Batch, values: list[Tensor]) -> Tensor:
    """Return the densities of the same codes for each of some data, shape (K, B)."""
    count = particles.count(rows)
    each = [value.expand(-1, count, *value.shape[2:]) for value in values]
    return particles.log_q(rows, *each).double()


def _classified(codes: Tensor, prior: Tensor, seed: int) -> tuple[float, float]:
    """Return the accuracy of a classifier on the half of two samples that it has not learned on, and its p-value."""
    (learn, measure), both = halves(len(codes), seed), _standard(torch.cat([codes, prior]))
    codes, prior = both.split(len(codes))
    probability = learned(codes[learn], prior[learn])
    of_codes, of_prior = (probability(each[measure]) for each in (codes, prior))
    right, count = int((of_codes > 0.5).sum() + (of_prior <= 0.5).sum()), 2 * len(of_codes)
    return right / count, float(stats.binomtest(right, count, alternative="greater").pvalue)


def _accuracies(means: Tensor, named: np.ndarray, seed: int) -> tuple[float, float]:
    """Return the accuracies of labels by the nearest neighbour and by a linear map, learned on half of the codes."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier

    (learn, measure), scaled = halves(len(means), seed), _standard(means).numpy()
    if not can_be_learned(named[learn]):
        return math.nan, math.nan
    kinds = KNeighborsClassifier(1), LogisticRegression(max_iter=1000)
    nearest, linear = (kind.fit(scaled[learn], named[learn]).score(scaled[measure], named[measure]) for kind in kinds)
    return float(nearest), float(linear)


def _standard(values: Tensor) -> Tensor:
    """Return values around their mean in units of their standard deviation, as classifiers learn slowly otherwise."""
    return (values - values.mean(0)) / deviations(values)


def _verdict(active: int, count: int, information: float) -> str:
    if active:
        return f"{active} of {count} dimensions of the codes are active"
    if information > INFORMED:
        return (
            f"no dimension of the codes is active, but together they know {information:.2f} nats of the data: they"
            " differ by far less than draws from the prior"
        )
    return (
        "the posterior has collapsed: no dimension of the codes depends on the data; try a KL weight that rises"
        " (beta=linear_warm_up(...), --warm-up), objectives.FreeBits, or a decoder with a smaller network or scale"
    )


class _Particles(Particles):
    about_codes = True


_Particles.__name__ = NAME  # the name that an objective's errors use
