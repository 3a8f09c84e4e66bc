r"""Annealed importance sampling: log p(x) by chains that move from where sampling is easy to the posterior.

.. math:: \log f_t = (1 - \beta_t) \log f_0 + \beta_t \log p(x, z), \qquad 0 = \beta_0 < \dots < \beta_T = 1

where :math:`f_0` is the encoder q(z|x) or the prior p(z). Each step weighs a chain by :math:`f_t / f_{t-1}`, then moves
it by Hamiltonian Monte Carlo, which leaves :math:`f_t` invariant. The mean weight is p(x), whatever the moves.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_vae.arguments import as_number, as_size
from pyro_vae.data import Ready, count_in, pieces
from pyro_vae.data.batch import Batch, Count, arguments, cut
from pyro_vae.diagnostics.coordinates import Coordinates
from pyro_vae.diagnostics.particles import MANY, Particles, replayed
from pyro_vae.diagnostics.vectors import check_in_order
from pyro_vae.diagnostics.weights import LogLikelihood, summary
from pyro_vae.objectives.particles import PARTICLES, on_particles
from pyro_vae.programs import Program, as_input, check_programs, mode, seeded
from pyro_vae.programs.handlers import LocalModules
from pyro_vae.programs.seeds import noise_seed
from pyro_vae.runtime.memory import KEPT, as_bytes, keep_freed_memory, most_within, peak_of
from pyro_vae.runtime.progress import bar

NAME = "annealed importance sampling"
STARTS = ("encoder", "prior")
SPREAD = 100  # draws from the start, whose spread is the scale of the moves
PILOTS = 4  # chains of each datum that only find step sizes, as weights would be biased by sizes that depend on them
GAIN = 0.1  # by which the logarithm of a step size follows the acceptance
STEEPNESS = 4.0  # of the schedule


class Slopes(NamedTuple):
    """The two ends of the path at some coordinates, shape (K, B), and their gradients, shape (K, B, D)."""

    log_start: Tensor
    log_joint: Tensor
    of_start: Tensor
    of_joint: Tensor

    def at(self, beta: float) -> tuple[Tensor, Tensor]:
        """Return the log-density on the path, and its gradient."""
        return (
            torch.lerp(self.log_start, self.log_joint, beta),
            torch.lerp(self.of_start, self.of_joint, beta),
        )


def schedule(steps: int) -> list[float]:
    """Return the positions on the path, from 0 to 1: a sigmoid, which is slow at both ends.

    Example:
        >>> [round(beta, 3) for beta in schedule(4)]
        [0.0, 0.105, 0.5, 0.895, 1.0]

    Reference:
        Wu, Burda, Salakhutdinov and Grosse, 2017, On the Quantitative Analysis of Decoder-Based Generative Models,
        section 4.
    """
    sigmoid = torch.linspace(-STEEPNESS, STEEPNESS, steps + 1, dtype=torch.float64).sigmoid()
    return ((sigmoid - sigmoid[0]) / (sigmoid[-1] - sigmoid[0])).tolist()


@dataclass(frozen=True)
class Settings:
    """How chains are annealed; see `ais`."""

    chains: int
    steps: int
    leapfrog: int
    start: str
    acceptance: float

    def __post_init__(self) -> None:
        for name in ("chains", "steps", "leapfrog"):
            as_size(getattr(self, name), name)
        if self.start not in STARTS:
            raise ValueError(f"start is 'encoder' or 'prior', not {self.start!r}")
        if not 0 < as_number(self.acceptance, "acceptance") < 1:
            raise ValueError(f"acceptance must be between 0 and 1, not {self.acceptance}")


class Annealing(Particles):
    """The annealing path of a pair of programs: draws from its start, and the densities of its ends.

    Arguments:
        model: the Pyro program of p(x, z).
        guide: the Pyro program of q(z|x).
        count: returns the number of data of a batch.
        settings: how chains are annealed.
    """

    def __init__(self, model: Program, guide: Program, count: Count, settings: Settings) -> None:
        super().__init__(model, guide, count)
        self.settings = settings

    def meet(self, datum: Batch) -> bool:
        if not super().meet(datum):
            return False
        prior = self._drawn_from_prior(datum, 1)
        self.values_in(prior)  # refuses what the model does not draw
        self.coordinates = Coordinates([prior.nodes[name] for name in self.latents])
        return True

    def _drawn_from_prior(self, rows: Batch, count: int) -> Trace:
        args, kwargs = arguments(rows)
        return poutine.trace(pyro.plate(PARTICLES, count, dim=-2)(self.model)).get_trace(*args, **kwargs)

    def at_start(self, rows: Batch, count: int) -> Tensor:
        """Return the coordinates of draws from the start of the path, shape (K, B, D)."""
        if self.settings.start == "encoder":
            return self.coordinates.of(self.draw(rows, count)[1:])
        return self.coordinates.of(self.values_in(self._drawn_from_prior(rows, count)))

    @torch.enable_grad()
    def slopes(self, rows: Batch, u: Tensor) -> "Slopes":
        """Return the densities of both ends of the path at some coordinates, and their gradients."""
        u = u.detach().requires_grad_()
        values, log_density = self.coordinates.values(u)
        likelihood, prior = self.log_p(rows, *values)
        log_start = log_density + (prior if self.settings.start == "prior" else self.log_q(rows, *values))
        log_joint = log_density + likelihood + prior
        (of_start,) = torch.autograd.grad(log_start.sum(), u, retain_graph=True)
        (of_joint,) = torch.autograd.grad(log_joint.sum(), u)
        return Slopes(log_start.detach(), log_joint.detach(), of_start, of_joint)

    def batch_size(self, first: Callable[[int], Batch], total: int, memory: int) -> int:
        """Return for how many data all chains move at a time."""
        chains = max(self.settings.chains, PILOTS)

        def peak(count: int) -> int:
            rows = first(count)
            return peak_of(lambda: self.slopes(rows, self.at_start(rows, chains)))

        size = most_within(min(memory // 2, KEPT), peak, total) or most_within(memory // 2, peak, total)
        if not size:
            raise ValueError(f"a memory of {memory:,} bytes is too small for {chains} chains of a datum: give more")
        return size


Annealing.__name__ = NAME  # the name that an objective's errors use


@dataclass
class Path:
    """The annealing path of a batch.

    Arguments:
        slopes: returns the ends of the path at some coordinates.
        scale: the spread of the start in each coordinate, shape (B, D).
        settings: how chains are annealed.
        advance: called with the number of data that have made a step.
    """

    slopes: Callable[[Tensor], Slopes]
    scale: Tensor
    settings: Settings
    advance: Callable[[int], Any]
    sizes: list[Tensor] = field(default_factory=list)  # step sizes of each datum at each position, shape (B,)

    def tune(self, u: Tensor) -> None:
        """Find step sizes by chains of their own, so that those that follow do not depend on them."""
        size = self.scale.new_full(self.scale.shape[:1], 0.5)
        here = self.slopes(u)
        for beta in schedule(self.settings.steps)[1:]:
            u, here, acceptance = self.move(u, here, beta, size)
            size = size * (GAIN * (acceptance.mean(0) - self.settings.acceptance)).exp()
            self.sizes.append(size)
            self.advance(len(size))

    def up(self, u: Tensor) -> Tensor:
        """Return the log-weights of chains from the start to the posterior, (K, B); their mean weight is p(x)."""
        betas, here = schedule(self.settings.steps), self.slopes(u)
        log_weights = torch.zeros_like(here.log_joint, dtype=torch.float64)
        for before, beta, size in zip(betas, betas[1:], self.sizes, strict=False):
            log_weights += (beta - before) * (here.log_joint - here.log_start).double()
            u, here, _ = self.move(u, here, beta, size)
            self.advance(len(size))
        return log_weights

    def down(self, u: Tensor) -> Tensor:
        """Return the log-weights of chains from a draw of the posterior to the start; their mean weight is 1 / p(x)."""
        betas, here = schedule(self.settings.steps), self.slopes(u)
        log_weights = torch.zeros_like(here.log_joint, dtype=torch.float64)
        for before, beta, size in reversed([*zip(betas, betas[1:], self.sizes, strict=False)]):
            u, here, _ = self.move(u, here, beta, size)
            log_weights += (before - beta) * (here.log_joint - here.log_start).double()
            self.advance(len(size))
        return log_weights

    def move(self, u: Tensor, here: Slopes, beta: float, size: Tensor) -> tuple[Tensor, Slopes, Tensor]:
        """Move each chain once by Hamiltonian Monte Carlo.

        Arguments:
            u: the chains, shape (K, B, D).
            here: the ends of the path at u.
            beta: the position on the path.
            size: the step size of each datum, shape (B,).

        Returns:
            The chains, the ends of the path there, and the probability with which each move was accepted, (K, B).

        Reference:
            Neal, 2011, MCMC Using Hamiltonian Dynamics, figure 2.
        """
        step = size[:, None] * self.scale
        momentum = torch.randn_like(u)
        log_density, slope = here.at(beta)
        energy = log_density - momentum.square().sum(-1) / 2
        moved = u
        for _ in range(self.settings.leapfrog):
            momentum = momentum + step / 2 * slope
            moved = moved + step * momentum
            there = self.slopes(moved)
            log_density, slope = there.at(beta)
            momentum = momentum + step / 2 * slope
        change = (log_density - momentum.square().sum(-1) / 2 - energy).nan_to_num(nan=-math.inf)
        accepted = torch.rand_like(change).log() < change
        u = torch.where(accepted[..., None], moved, u)
        kept = [
            torch.where(accepted.reshape(*accepted.shape, *[1] * (a.dim() - 2)), b, a)
            for a, b in zip(here, there, strict=True)
        ]
        return u, Slopes(*kept), change.exp().clamp(max=1)


class Bracket(NamedTuple):
    """A lower and an upper bound on log p(x) for each datum, with their standard errors, in nats; each of shape (N,).

    Each bound holds in the mean over the noise.
    """

    lower: Tensor
    upper: Tensor
    lower_error: Tensor
    upper_error: Tensor


def ais(
    model: Program,
    guide: Program,
    data: Any,
    *,
    chains: int = 16,
    steps: int = 1000,
    leapfrog: int = 10,
    start: str = "encoder",
    acceptance: float = 0.65,
    memory: int | str = "2GB",
    seed: int = 0,
    count: Count | None = None,
    progress: bool = False,
) -> LogLikelihood:
    r"""Estimate the log-likelihood of each datum by annealed importance sampling.

    .. math:: \log \frac1K \sum_k \prod_{t=1}^T \frac{f_t(z_{k,t-1})}{f_{t-1}(z_{k,t-1})}

    The expectation of the estimate is a lower bound on log p(x), which grows with the number of steps. Where the guide
    misses a part of the posterior, the chains find it, and importance sampling does not.

    Arguments:
        model: the Pyro program of p(x, z), called with a batch; every site is in one plate, over the data.
        guide: the Pyro program of q(z|x), called with a batch.
        data: what `fit` takes: tensors, alone or in a tuple or a dict, a data set, or ready batches.
        chains: K, the number of chains for each datum, at least 1.
        steps: T, the number of moves of each chain, at least 1.
        leapfrog: leapfrog steps of each move, at least 1.
        start: "encoder" begins at draws of q(z|x), and needs about a tenth of the steps of "prior", which begins at
            draws of p(z) and trusts no encoder.
        acceptance: the share of moves that are accepted, in (0, 1). Step sizes are tuned to it by 4 further chains.
        memory: limit for the tensors of chains that move at a time, as for `log_likelihood`.
        seed: random seed of the noise; torch's own random state does not change.
        count: returns the number of data of a ready batch.
        progress: show a progress bar.

    Returns:
        The estimate of each datum, with its standard error over the chains, on the CPU, in the order of the data.

    Raises:
        TypeError, ValueError: as for `log_likelihood`; for numbers out of range, an unknown start, and sites that have
            no gradient, such as discrete ones; for a loader that shuffles.

    Example:
        >>> from pyro_vae.diagnostics.estimators import linear_gaussian
        >>> from pyro_vae import log_likelihood
        >>> vae, x = linear_gaussian()
        >>> found = ais(vae.model, vae.guide, x, steps=50)
        >>> sampled = log_likelihood(vae.model, vae.guide, x)
        >>> abs(found.estimate.mean().item() - sampled) < 0.1
        True

    Reference:
        Neal, 2001, Annealed Importance Sampling; Wu, Burda, Salakhutdinov and Grosse, 2017, On the Quantitative
        Analysis of Decoder-Based Generative Models, section 3 and, of the start at the encoder, section 4.2.
    """

    def run(annealing: Annealing, path_of: Callable[[Batch], Path], rows: Batch) -> LogLikelihood:
        found = summary(path_of(rows).up(annealing.at_start(rows, chains)).cpu())
        annealing.check_finite(found.estimate.isnan(), rows, "the log-likelihood")
        return found

    check_in_order(data, "the estimates of data")
    settings = Settings(chains, steps, leapfrog, start, acceptance)
    found = _of_all(model, guide, data, run, settings, 2, memory, seed, count, progress)
    return LogLikelihood(*map(torch.cat, zip(*found, strict=True)))


def bdmc(
    model: Program,
    guide: Program,
    data: Any,
    *,
    chains: int = 16,
    steps: int = 1000,
    leapfrog: int = 10,
    start: str = "encoder",
    acceptance: float = 0.65,
    memory: int | str = "2GB",
    seed: int = 0,
    count: Count | None = None,
    progress: bool = False,
) -> Bracket:
    r"""Enclose log p(x) of data that are simulated from the model, by bidirectional Monte Carlo.

    The model draws z and x for each of the given data. Chains from the start to the posterior give a lower bound, as in
    `ais`; chains from z, which is an exact draw of the posterior, back to the start give an upper bound:

    .. math:: \log \frac1K \sum_k w_k \;\le\; \log p(x) \;\le\; -\log \frac1K \sum_k w'_k
              \qquad \text{in the mean}

    If the width of this bracket is small, the chains are long enough, and `ais` with the same settings can be trusted
    on real data that are like the simulated ones.

    Arguments:
        model: the Pyro program of p(x, z), whose observed sites are given to it as they are.
        guide: the Pyro program of q(z|x).
        data: as many data are simulated as these; they also give what is not observed, such as labels.
        chains: as for `ais`, like all that follow.
        steps: moves of each chain.
        leapfrog: leapfrog steps of each move.
        start: "encoder" or "prior".
        acceptance: the share of moves that are accepted.
        memory: limit for the tensors of chains that move at a time.
        seed: random seed of the noise.
        count: returns the number of data of a ready batch.
        progress: show a progress bar.

    Returns:
        Both bounds for each simulated datum, with their standard errors, on the CPU.

    Raises:
        TypeError, ValueError: as for `ais`; for a model that observes something that the data do not hold as it is, or
            that has a factor.

    Example:
        >>> from pyro_vae.diagnostics.estimators import linear_gaussian
        >>> vae, x = linear_gaussian(count=50)
        >>> lower, upper, *_ = bdmc(vae.model, vae.guide, x, steps=50)
        >>> 0 < (upper - lower).mean().item() < 0.1
        True

    Reference:
        Grosse, Ghahramani and Adams, 2015, Sandwiching the Marginal Likelihood Using Bidirectional Monte Carlo.
    """

    def run(annealing: Annealing, path_of: Callable[[Batch], Path], rows: Batch) -> Bracket:
        rows, codes = annealing.simulated(rows)
        posterior = annealing.coordinates.of([code.expand(chains, *code.shape) for code in codes])
        path = path_of(rows)
        lower = summary(path.up(annealing.at_start(rows, chains)).cpu())
        upper = summary(path.down(posterior).cpu())
        annealing.check_finite((lower.estimate + upper.estimate).isnan(), rows, "the log-likelihood")
        return Bracket(lower.estimate, -upper.estimate, lower.standard_error, upper.standard_error)

    settings = Settings(chains, steps, leapfrog, start, acceptance)
    found = _of_all(model, guide, data, run, settings, 3, memory, seed, count, progress)
    return Bracket(*map(torch.cat, zip(*found, strict=True)))


@torch.no_grad()
def _of_all(
    model: Program,
    guide: Program,
    data: Any,
    run: Callable[[Annealing, Callable[[Batch], Path], Batch], Any],
    settings: Settings,
    passes: int,
    memory: int | str,
    seed: int,
    count: Count | None,
    progress: bool,
) -> list[Any]:
    """Return what ``run`` returns for some data after others; it moves chains along the path ``passes`` times."""
    budget, x, found = as_bytes(memory), as_input(data, model, guide, count=count), []
    count_rows, local, steps = count_in(x), LocalModules(), passes * settings.steps
    keep_freed_memory()
    with seeded(noise_seed(seed), x.device), mode(False, model, guide):
        check_programs(model, guide, x)
        with pyro.validation_enabled(False), on_particles(NAME), bar(len(x) * steps, "step", shown=progress) as shown:
            annealing = Annealing(local(model), local(guide), count_rows, settings)
            annealing.meet(x[:2])
            with seeded(noise_seed(seed), x.device):
                size = annealing.batch_size(lambda rows: x[:rows], len(x), budget)
            calls = steps * settings.leapfrog * math.ceil(len(x) / size)
            slopes = replayed(annealing.slopes, calls, calls >= MANY)

            def path_of(rows: Batch) -> Path:
                annealing.check_masks(rows)
                annealing.check_repeated(
                    rows, "model", annealing.log_joint, "draw it at a site, or take log_likelihood"
                )
                if settings.start == "encoder":
                    fix = "take start='prior', or log_likelihood"
                    annealing.check_repeated(rows, "guide", annealing.log_q, fix)
                draws = annealing.at_start(rows, SPREAD)
                scale = draws.std(0).clamp(min=torch.finfo(draws.dtype).eps)
                path = Path(lambda u: Slopes(*slopes(rows, u)), scale, settings, shown.update)
                path.tune(draws[:PILOTS])
                return path

            for whole in x.split(size):
                if isinstance(x, Ready) and annealing.meet(cut(whole, 2, count_rows)):
                    size = annealing.batch_size(partial(cut, whole, count=count_rows), count_rows(whole), budget)
                found += [run(annealing, path_of, rows) for rows in pieces(whole, size, count_rows)]
    return found
