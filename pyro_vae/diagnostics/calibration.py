"""Whether the spread of an encoder's posteriors is right, on data that are simulated from the model."""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from scipy import stats
from torch import Tensor

from pyro_vae.arguments import as_size
from pyro_vae.data import count_in, pieces
from pyro_vae.data.batch import Count, cut, tensors_of
from pyro_vae.diagnostics.classifier import learned
from pyro_vae.diagnostics.particles import NOT_FINITE, Particles
from pyro_vae.diagnostics.vectors import deviations, varies
from pyro_vae.objectives.particles import on_particles
from pyro_vae.programs import Program, as_input, check_programs, mode, seeded
from pyro_vae.programs.handlers import LocalModules
from pyro_vae.programs.seeds import noise_seed
from pyro_vae.runtime.memory import as_bytes
from pyro_vae.runtime.progress import bar

NAME = "calibration"
LEVEL = 0.01  # p-values below this are failures
UNIFORMS = 10_000  # samples of ranks that would be seen if the posteriors were exact
FEWEST = 20  # data, of which half teach the classifier
TOGETHER = 500  # data that are simulated together at most
COMPONENTS = 10  # of the data, by which the classifier knows which datum a code is of


class Calibration(NamedTuple):
    """Three tests of an encoder's posteriors on N simulated data with D latent dimensions, and what they are made from.

    A p-value is the probability of a result at least as bad if the posteriors were exact.

    ``ranks`` are those of the true codes among L draws, from 0 to L, shape (N, D); ``rank_p`` is the p-value of each
    dimension, shape (D,). ``coverage_ranks``, shape (N,), are those of the distances to a reference (TARP), and
    ``coverage_p`` their p-value. ``classifier_p`` is that of a classifier that tells true codes from draws, given x.
    ``verdict`` says in a sentence what failed.
    """

    ranks: Tensor
    rank_p: Tensor
    coverage_ranks: Tensor
    coverage_p: float
    classifier_p: float
    draws: int
    verdict: str

    @property
    def p(self) -> float:
        """The p-value of all tests together: the smallest of them, times their number."""
        each = [*self.rank_p.tolist(), self.coverage_p, self.classifier_p]
        return min(1.0, len(each) * min(each))


def gamma(ranks: np.ndarray, draws: int) -> np.ndarray:
    r"""Return how unlikely the most unlikely point of the ranks' distribution function is, if they are uniform.

    .. math:: \gamma = 2 \min_i \min \{ \mathrm{Bin}(R_i \mid N, z_i),\; 1 - \mathrm{Bin}(R_i - 1 \mid N, z_i) \},
              \qquad z_i = \tfrac{i}{L + 1}

    where :math:`R_i` counts the ranks below i.

    Arguments:
        ranks: N ranks from 0 to L, shape (..., N).
        draws: L.

    Example:
        >>> float(gamma(np.arange(100) % 10, 9).round(2))  # each rank ten times: as even as can be
        1.08

    Reference:
        Säilynoja, Bürkner and Vehtari, 2022, Graphical Test for Discrete Uniformity and its Applications in
        Goodness-of-Fit Evaluation and Multiple Sample Comparison, equation 5; Modrák et al., 2023, Simulation-Based
        Calibration Checking for Bayesian Computation, section 4.1.
    """
    shares = np.arange(1, draws + 1) / (draws + 1)
    flat, total = ranks.reshape(-1, ranks.shape[-1]), ranks.shape[-1]
    cells = (np.arange(len(flat))[:, None] * (draws + 1) + flat).ravel()
    counts = np.bincount(cells, minlength=len(flat) * (draws + 1)).reshape(len(flat), -1).cumsum(-1)[:, :-1]
    low, high = stats.binom.cdf(counts, total, shares), stats.binom.sf(counts - 1, total, shares)
    return 2 * np.minimum(low, high).min(-1).reshape(ranks.shape[:-1])


@cache
def _gammas(count: int, draws: int) -> np.ndarray:
    """Return `gamma` of 10,000 samples of uniform ranks."""
    generator = np.random.default_rng(0)
    uniform = (generator.integers(0, draws + 1, (500, count)) for _ in range(UNIFORMS // 500))
    return np.concatenate([gamma(each, draws) for each in uniform])


def uniform_p(ranks: Tensor, draws: int) -> Tensor:
    """Return the p-value of ranks being uniform, by `gamma` of 10,000 samples of uniform ranks.

    Arguments:
        ranks: N ranks from 0 to ``draws``, for each dimension, shape (N, D).
        draws: the number of draws that each was compared with.

    Returns:
        The p-values, at least 1 / 10,001, shape (D,).

    Example:
        >>> uniform_p(torch.arange(100)[:, None] % 10, draws=9)  # even
        tensor([1.], dtype=torch.float64)
        >>> uniform_p(torch.full((100, 1), 4), draws=9) < 0.001  # always in the middle
        tensor([True])
    """
    found = gamma(ranks.T.cpu().numpy(), draws)
    below = (_gammas(len(ranks), draws) <= found[:, None] * (1 + 1e-9)).sum(-1)
    return torch.as_tensor((1 + below) / (1 + UNIFORMS))


def band(count: int, draws: int, tests: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Return between what the shares of ranks below 1, ..., L lie, all of them, with a probability of 99 %.

    Arguments:
        count: the number of ranks N.
        draws: L.
        tests: the number of tests that are made together; the probability is that of all of them.

    Returns:
        The lowest and the highest shares of N uniform ranks, each of shape (L,).

    Example:
        >>> low, high = band(100, 9)
        >>> bool((low < np.arange(1, 10) / 10).all() and (high > np.arange(1, 10) / 10).all())
        True
    """
    shares = np.arange(1, draws + 1) / (draws + 1)
    each = np.quantile(_gammas(count, draws), LEVEL / tests) / 2
    return stats.binom.ppf(each, count, shares) / count, stats.binom.isf(each, count, shares) / count


@torch.no_grad()
def calibration(
    model: Program,
    guide: Program,
    data: Any,
    *,
    draws: int = 99,
    memory: int | str = "2GB",
    seed: int = 0,
    count: Count | None = None,
    progress: bool = False,
) -> Calibration:
    r"""Test an encoder's posteriors on data that are simulated from the model, whose codes are known.

    .. math:: z \sim p(z), \quad x \sim p(x|z), \quad z_1, \dots, z_L \sim q(z|x)

    If :math:`q(z|x) = p(z|x)`, the true code z and the draws cannot be told apart, so that:

    - the rank of each dimension of z among those of the draws is uniform (simulation-based calibration). A scale that
      is too small gives ranks near the ends, a shifted mean ranks at one end;
    - the rank of the distance of z to a reference among those of the draws is uniform (TARP);
    - a classifier cannot tell z from a draw, given x. It also sees what ranks do not, such as wrong correlations.

    Arguments:
        model: the Pyro program of p(x, z), which observes the data as they are.
        guide: the Pyro program of q(z|x), called with a batch.
        data: as many data are simulated as these, best 500 or more; they also give what
            is not observed, such as labels.
        draws: L, at least 2.
        memory: limit for the tensors of the data that are simulated together, such as "512MB". It changes the noise, as
            fewer data are then simulated together.
        seed: random seed of the noise; torch's own random state does not change.
        count: returns the number of data of a ready batch.
        progress: show a progress bar.

    Returns:
        The ranks, the p-values of the three tests, and a verdict in words.

    Raises:
        TypeError, ValueError: as for `log_likelihood`; for fewer than 20 data; for a model that observes something that
            the data do not hold as it is.

    Example:
        >>> from pyro_vae.diagnostics.estimators import linear_gaussian
        >>> exact, x = linear_gaussian(offset=0.0, factor=1.0, count=500)
        >>> calibration(exact.model, exact.guide, x).verdict
        'no failure is seen'
        >>> narrow, x = linear_gaussian(offset=0.0, factor=0.7, count=500)
        >>> calibration(narrow.model, narrow.guide, x).verdict.partition(",")[0]
        'the posteriors are wrong: ranks of 2 of 2 dimensions (too narrow)'

    Reference:
        Talts, Betancourt, Simpson, Vehtari and Gelman, 2018, Validating Bayesian Inference Algorithms with
        Simulation-Based Calibration; Lemos, Coogan, Hezaveh and Perreault-Levasseur, 2023, Sampling-Based Accuracy
        Testing of Posterior Estimators for General Inference (TARP); Linhart, Gramfort and Rodrigues, 2023, L-C2ST:
        Local Diagnostics for Posterior Approximations in Simulation-Based Inference.
    """
    as_size(draws, "draws", 2)
    budget = as_bytes(memory)
    x = as_input(data, model, guide, count=count)
    if len(x) < FEWEST:
        raise ValueError(f"{NAME} needs at least {FEWEST} data to simulate as many, not {len(x)}: give more")
    count_rows = count_in(x)
    with seeded(noise_seed(seed), x.device), mode(False, model, guide), bar(len(x), "data", shown=progress) as shown:
        check_programs(model, guide, x)
        true, both, seen = Simulated(model, guide, count_rows, 2 * draws, budget).of(x, shown.update)
        ranks = _ranks(true, both[:draws])
        true, compared = in_units(true, both)
        reference = torch.randn(true.shape[1:], dtype=torch.float64)
        coverage_ranks = _ranks((true - reference).norm(dim=-1), (compared - reference).norm(dim=-1))
        classifier_p = _classifier_p(true, compared[0], seen)
    rank_p, coverage_p = uniform_p(ranks, draws), uniform_p(coverage_ranks[:, None], draws).item()
    verdict = _verdict(ranks, draws, rank_p, coverage_p, classifier_p)
    return Calibration(ranks, rank_p, coverage_ranks, coverage_p, classifier_p, draws, verdict)


def in_units(true: Tensor, both: Tensor) -> tuple[Tensor, Tensor]:
    """Return true codes and half of the draws in units of each posterior, which the other half of the draws measures.

    If a draw were measured by itself, it would lie nearer to the center than a true code.
    """
    compared, others = both.tensor_split(2)
    center, scale = others.mean(0), torch.where(varies(others), others.std(0), 1e-12)  # far from a point
    return (true - center) / scale, (compared - center) / scale


def _flat(tensors: list[Tensor], batch_dims: int) -> Tensor:
    """Return the numbers of all tensors as one vector for each datum."""
    return torch.cat([each.reshape(*each.shape[:batch_dims], -1).double() for each in tensors], -1)


def _ranks(true: Tensor, drawn: Tensor) -> Tensor:
    """Return how many draws are below the true values; among equal ones, as of discrete codes, the place is random."""
    below, equal = (drawn < true).sum(0), (drawn == true).sum(0)
    return below + (torch.rand(true.shape, dtype=torch.float64) * (equal + 1)).long()


class Features:
    """What a classifier sees of codes and data: standardized codes, their products, and components of the data.

    Arguments:
        seen: the data that codes belong to, shape (N, P).
        size: the number of dimensions of a code.
    """

    def __init__(self, seen: Tensor, size: int) -> None:
        self.center, self.scale = seen.mean(0), deviations(seen)
        about = self._standard(seen)
        wide = about.shape[1] > COMPONENTS
        basis = torch.pca_lowrank(about, COMPONENTS)[2] if wide else torch.eye(about.shape[1], dtype=about.dtype)
        self.basis = basis / deviations(about @ basis) if wide else basis
        self.row, self.column = torch.triu_indices(size, size if size <= COMPONENTS else 0)

    def of(self, codes: Tensor, seen: Tensor) -> Tensor:
        """Return the features of codes, shape (N, D), and of the data that they belong to, shape (N, P)."""
        products = codes[:, self.row] * codes[:, self.column]
        return torch.cat([codes, products, self._standard(seen) @ self.basis], -1)

    def _standard(self, seen: Tensor) -> Tensor:
        return ((seen - self.center) / self.scale).nan_to_num()


def _classifier_p(true: Tensor, drawn: Tensor, seen: Tensor) -> float:
    """Return the p-value of a classifier that has learned on half of the data to tell true codes from draws.

    On each datum of the other half it succeeds with probability 1/2 if they cannot be told apart.
    """
    features = Features(seen, true.shape[1])
    of_true, of_draw, half = features.of(true, seen), features.of(drawn, seen), len(true) // 2
    probability = learned(of_true[:half], of_draw[:half])
    high, low = probability(of_true[half:]), probability(of_draw[half:])
    return float(stats.binomtest(int((high > low).sum()), len(high), alternative="greater").pvalue)


def _verdict(ranks: Tensor, draws: int, rank_p: Tensor, coverage_p: float, classifier_p: float) -> str:
    tests = len(rank_p) + 2
    failed = rank_p * tests < LEVEL
    failures = []
    if failed.any():
        away = (ranks[:, failed].double() / draws - 0.5).abs().mean().item()  # 1/4 if they are uniform
        shifted = ((ranks[:, failed].double().mean(0) / draws - 0.5).abs() > 0.05).any()
        how = "shifted" if shifted else "too narrow" if away > 0.25 else "too wide"
        failures.append(f"ranks of {int(failed.sum())} of {len(rank_p)} dimensions ({how})")
    failures += ["coverage"] * (coverage_p * tests < LEVEL) + ["classifier"] * (classifier_p * tests < LEVEL)
    return f"the posteriors are wrong: {', '.join(failures)}" if failures else "no failure is seen"


class Simulated(Particles):
    """Codes and data from the model, beside draws from the guide given these data.

    Arguments:
        model: the Pyro program of p(x, z).
        guide: the Pyro program of q(z|x).
        count: returns the number of data of a batch.
        draws: the number of draws for each datum.
        memory: limit for the data that are simulated together, in bytes.
    """

    about_codes = True

    def __init__(self, model: Program, guide: Program, count: Count, draws: int, memory: int) -> None:
        local = LocalModules()
        super().__init__(local(model), local(guide), count)
        self.number, self.memory = draws, memory

    def of(self, x: Any, advance: Callable[[int], Any]) -> tuple[Tensor, Tensor, Tensor]:
        """Return true codes, (N, D), draws, (K, N, D), and the simulated data, (N, P), one in place of each datum."""
        true, drawn, seen = self._each(x, advance, simulated=True)
        return true, drawn, seen

    def given(self, x: Any) -> tuple[Tensor, Tensor]:
        """Return draws given the data themselves, (K, N, D), and the data, (N, P)."""
        _, drawn, seen = self._each(x, lambda _: None, simulated=False)
        return drawn, seen

    def _each(self, x: Any, advance: Callable[[int], Any], *, simulated: bool) -> list[Tensor]:
        found: list[tuple[Tensor, ...]] = []
        with pyro.validation_enabled(False), on_particles(NAME):
            for whole in x.split(TOGETHER):
                self.meet(cut(whole, 2, self.count))
                size = self.data_within(self.memory, whole, self.number, TOGETHER)
                for rows in pieces(whole, size, self.count):
                    of_model, codes = self.simulated(rows)
                    given = of_model if simulated else rows
                    self.check_masks(given)
                    true, drawn = _flat(codes, 1), _flat(self.draw(given, self.number)[1:], 2)
                    finite = true.isfinite().all(-1) & drawn.isfinite().all(-1).all(0)
                    self.check_finite(~finite, given, "the code", NOT_FINITE)
                    found.append((true, drawn, _flat(tensors_of(given), 1)))
                    advance(self.count(rows))
        return [torch.cat(parts, -2).double().cpu() for parts in zip(*found, strict=True)]


Simulated.__name__ = NAME  # the name that an objective's errors use
