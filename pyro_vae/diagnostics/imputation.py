"""Missing entries of data, drawn given those that are observed."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyro_vae.arguments import as_size
from pyro_vae.data import count_in, pieces
from pyro_vae.data.batch import Batch, Count, arguments, cut, map_tensors, tensors_of, with_tensors
from pyro_vae.diagnostics.annealing import Annealing, Settings
from pyro_vae.diagnostics.observed import LeftOut, are_incomplete, in_memory, programs_on_observed
from pyro_vae.diagnostics.particles import Particles, data_within, replayed
from pyro_vae.diagnostics.posteriors import chain_of
from pyro_vae.diagnostics.weights import RELIABLE, pareto_k
from pyro_vae.distributions.moments import NoMeanError, mean_of
from pyro_vae.objectives import DataPlates
from pyro_vae.objectives._objective import with_values
from pyro_vae.objectives.particles import on_particles
from pyro_vae.programs import Program, as_input, check_programs, mode, seeded
from pyro_vae.programs.handlers import LocalModules
from pyro_vae.programs.seeds import noise_seed
from pyro_vae.runtime.memory import as_bytes
from pyro_vae.runtime.progress import bar

NAME = "impute"
WAYS = ("importance", "encoder", "gibbs", "nuts")
TOGETHER = 100  # data that are imputed together
CHECKED = 2  # data that the programs are first run on


class Imputation(NamedTuple):
    """Completed data, by their parts: what is observed is as it was.

    Attributes:
        mean: each missing entry has its mean given the observed ones, each part of shape (N, ...).
        draws: each missing entry is drawn, together with the others of its datum, each part of shape (M, N, ...).
        deviation: the standard deviation over the draws, 0 where an entry is observed, each part of shape (N, ...).
    """

    mean: list[Tensor]
    draws: list[Tensor]
    deviation: list[Tensor]


def impute(
    model: Program,
    guide: Program,
    data: Any,
    *,
    by: str = "importance",
    draws: int = 20,
    samples: int = 1000,
    steps: int = 200,
    memory: int | str = "2GB",
    seed: int = 0,
    count: Count | None = None,
    progress: bool = False,
) -> Imputation:
    r"""Draw the missing entries of data (NaN) given the observed ones.

    .. math:: x_m \sim p(x_m | x_o) = \int p(x_m | z) \, p(z | x_o) \, dz

    Arguments:
        model: the Pyro program of p(x, z), which observes independent entries of the data as they are.
        guide: the Pyro program of q(z|x), trained on complete data or on incomplete ones.
        data: what `fit` takes, all of which must fit into memory; NaN marks what is missing.
        by: how the codes are drawn. "importance": from the guide, weighed by :math:`p(x_o, z) / q(z|x_o)` and drawn
            again (Rubin's sampling importance resampling). "encoder": from the guide alone, which is fast, but as wrong
            as the guide is on incomplete data. "gibbs": codes and missing entries in turn, where the guide, given the
            completed datum, proposes a code that is accepted or not. "nuts": from :math:`p(z|x_o)` by the no-U-turn
            sampler, which takes seconds for each datum.
        draws: number of imputations M, at least 2.
        samples: draws from the guide that importance weighs, at least ``draws``.
        steps: steps of "gibbs", and warm-up steps of "nuts", at least 1.
        memory: limit for the tensors of the data that are completed at a time, such as "512MB"; the result, ``draws``
            times the data, comes on top of it. It changes the noise, as fewer data are then completed together.
        seed: random seed of the noise; torch's own random state does not change.
        count: returns the number of data of a ready batch.
        progress: show a progress bar.

    Returns:
        The completed data: with means, and M times with draws, whose spread shows how far they are known.

    Raises:
        TypeError, ValueError: as for `log_likelihood` and `on_observed`; for an unknown way, and numbers out of range.

    Example:
        >>> from pyro_vae.diagnostics.estimators import linear_gaussian
        >>> vae, x = linear_gaussian(offset=0.0, factor=3.0)
        >>> x[:, 0] = torch.nan
        >>> found = impute(vae.model, vae.guide, x)
        >>> found.mean[0].isfinite().all(), torch.equal(found.draws[0][3, :, 1:], x[:, 1:])
        (tensor(True), True)

    Reference:
        Rubin, 1987, The Calculation of Posterior Distributions by Data Augmentation: Comment (importance); Mattei and
        Frellsen, 2018, Leveraging the Exact Likelihood of Deep Latent Variable Models, algorithm 1 (gibbs) and, 2019,
        MIWAE, section 4 (importance).
    """
    if by not in WAYS:
        raise ValueError(f"by is one of {', '.join(WAYS)}, not {by!r}")
    for name, value, least in (("draws", draws, 2), ("samples", samples, draws), ("steps", steps, 1)):
        as_size(value, name, least)
    budget = as_bytes(memory)
    data = in_memory(data, model, guide, count)
    observed, completing, left_out = programs_on_observed(model, guide, data)
    x = as_input(data, observed, completing, count=count)
    count_rows, local, found = count_in(x), LocalModules(), []
    with seeded(noise_seed(seed), x.device), mode(False, model, guide), bar(len(x), "data", shown=progress) as shown:
        together = _most_together(check_programs(observed, completing, x), draws)
        with pyro.validation_enabled(False), on_particles(NAME), torch.no_grad():
            settings = Settings(draws, 1, 1, "encoder", 0.5)
            particles = _Particles(local(observed), local(completing), count_rows, settings)
            particles.left_out, particles.shapes, particles.moves = left_out, [], by == "nuts"
            particles.whole = x[:]
            particles.meet(x[:2])
            whole = _Particles(local(model), local(guide), count_rows, settings)

            def once(rows: Batch) -> None:
                gibbs = by == "gibbs"
                codes = particles.by_gibbs(rows, draws, 1, whole) if gibbs else particles.draw(rows, draws)[1:]
                particles.decoded(rows, codes, draws)

            weighed = samples if by == "importance" else 0
            together = particles.within(budget, x, min(together, len(x)), weighed, once)
            slopes = replayed(particles.slopes, len(x) * (5 * draws + steps) if by == "nuts" else 0, compiled=False)
            numbers = {"draws": draws, "samples": samples, "steps": steps}
            draw = partial(getattr(particles, f"by_{by}"), **numbers, whole=whole, slopes=slopes)
            for batch in x.split(together):
                for rows in pieces(batch, together, count_rows):
                    particles.check_masks(rows)
                    found.append(particles.completed(rows, draw(rows), draws))
                    shown.update(count_rows(rows))
    if heavy := sum(int((shape > RELIABLE).sum()) for shape in particles.shapes):
        warnings.warn(
            f"the importance weights of {heavy} of {len(x)} data have a Pareto k over {RELIABLE}, so that their draws"
            " may be far off: take by='gibbs' or 'nuts', or more samples",
            RuntimeWarning,
            stacklevel=2,
        )
    means = [torch.cat(parts).cpu() for parts in zip(*(mean for mean, _ in found), strict=True)]
    each = [torch.cat(parts, 1).cpu() for parts in zip(*(of_draws for _, of_draws in found), strict=True)]
    return Imputation(means, each, [part.double().std(0) for part in each])


def _most_together(plates: DataPlates, draws: int) -> int:
    """Return how many data are imputed at a time, each of them M times in the plate over the data."""
    if plates.size <= CHECKED:  # the plate of a batch, whatever its size
        return TOGETHER
    if plates.size < draws:
        raise ValueError(
            f"the plate over the data has size {plates.size}, and each datum is drawn {draws} times in it: take at most"
            f" {plates.size} draws, or pyro.plate('data', len(x))"
        )
    return min(TOGETHER, plates.size // draws)


class _Particles(Annealing):
    """Codes of data with missing entries, drawn in several ways, and the data completed by them."""

    left_out: LeftOut
    shapes: list[Tensor]  # of the tails of the weights
    whole: Batch  # all data
    done = 0  # of them are completed
    moves = False  # along gradients, which only some codes have
    chunk = 1  # samples that are weighed at a time

    def meet(self, datum: Batch) -> bool:
        return super().meet(datum) if self.moves else Particles.meet(self, datum)

    def within(self, memory: int, x: Any, most: int, samples: int, once: Callable[[Batch], Any]) -> int:
        """Return how many data are completed at a time, and find how many samples are weighed at a time.

        Arguments:
            memory: limit in bytes.
            x: all data.
            most: the most data at a time.
            samples: the number of samples that are weighed, or 0.
            once: draws codes of some data, and completes these.
        """
        if samples:
            with seeded(0, x.device):  # the noise of the imputation stays as it is
                most, self.chunk = self.sizes(lambda rows: x[:rows], most, samples, memory)
        return data_within(memory, once, x[:most], most, self.count)

    def by_encoder(self, rows: Batch, draws: int, **_: Any) -> list[Tensor]:
        """Return draws from the guide, each of shape (M, B, ...)."""
        log_q, *values = self.draw(rows, draws)
        self._check_possible(*self.weigh(rows, log_q, *values))
        return values

    def by_importance(self, rows: Batch, draws: int, samples: int, **_: Any) -> list[Tensor]:
        """Return draws from the guide that are drawn again by their weights."""
        drawn = self.draw(rows, samples)
        parts = zip(*(each.split(self.chunk) for each in drawn), strict=True)
        log_weights = torch.cat([self.weigh(rows, *part)[0] for part in parts])
        self._check_possible(log_weights)
        self.shapes.append(pareto_k(log_weights)[are_incomplete(rows)])  # of the others nothing is drawn
        chosen = torch.multinomial((log_weights - log_weights.max(0).values).exp().T, draws, replacement=True).T
        return [value[chosen, torch.arange(chosen.shape[1], device=chosen.device)] for value in drawn[1:]]

    def by_nuts(self, rows: Batch, draws: int, steps: int, slopes: Any, **_: Any) -> list[Tensor]:
        """Return draws of the no-U-turn sampler, every fifth of a chain."""
        drawn: list[list[Tensor]] = []
        for row, start in zip(pieces(rows, 1, self.count), self.at_start(rows, 1)[0], strict=True):
            self._check_possible(self.slopes(row, start[None, None]).log_joint, len(drawn))
            with torch.enable_grad():
                u = chain_of(partial(slopes, row), start, 5 * draws, steps)[::5]
            drawn.append(self.coordinates.values(u)[0])
        return [torch.cat(parts, 1) for parts in zip(*drawn, strict=True)]

    def by_gibbs(self, rows: Batch, draws: int, steps: int, whole: "_Particles", **_: Any) -> list[Tensor]:
        """Return the codes of M chains that draw codes and missing entries in turn."""
        many = _repeated(rows, draws)
        log_q, *drawn = self.draw(rows, draws)
        self._check_possible(*self.weigh(rows, log_q, *drawn))
        values = [value.flatten(0, 1)[None] for value in drawn]
        for _step in range(steps):
            full = with_tensors(many, self._drawn(many, values)[0])
            whole.meet(cut(full, 2, self.count))
            log_q, *proposed = whole.draw(full, 1)
            change = whole.weigh(full, log_q, *proposed)[0] - whole.weigh(full, whole.log_q(full, *values), *values)[0]
            accepted = torch.rand_like(change).log() < change
            pairs = zip(proposed, values, strict=True)
            values = [new.where(accepted.reshape(1, -1, *[1] * (new.dim() - 2)), old) for new, old in pairs]
        return [value.reshape(draws, -1, *value.shape[2:]) for value in values]

    def _check_possible(self, log_densities: Tensor, start: int = 0) -> None:
        """Refuse a datum that no draw of its code can explain, so that none is better than another."""
        best = log_densities.max(0).values
        for number in (~best.isfinite()).nonzero()[:1, 0].tolist():
            largest = max(part.nan_to_num(0.0).abs().max().item() for part in tensors_of(self.whole))
            raise ValueError(
                f"none of {len(log_densities)} draws of its code gives datum {self.done + start + number} a finite"
                f" density; the data hold values up to {largest:.4g}, and the guide may get their mean for what is"
                " missing: correct those that are far off, or leave them out"
            )

    def completed(self, rows: Batch, values: list[Tensor], draws: int) -> tuple[list[Tensor], list[Tensor]]:
        """Return the data completed by means, and by draws, given M codes of each."""
        drawn, means = self.decoded(rows, values, draws)
        self.done += self.count(rows)
        each = [part.reshape(draws, -1, *part.shape[1:]) for part in drawn]
        averages = [part.reshape(draws, -1, *part.shape[1:]).to(part.dtype) for part in means]
        kept = zip(tensors_of(rows), averages, strict=True)
        return [average.mean(0).where(x.isnan(), x) if x.is_floating_point() else x for x, average in kept], each

    def decoded(self, rows: Batch, values: list[Tensor], draws: int) -> tuple[list[Tensor], list[Tensor]]:
        """Return the parts of data, each M times, completed by draws and by means given M codes of each."""
        return self._drawn(_repeated(rows, draws), [value.flatten(0, 1)[None] for value in values])

    def _drawn(self, rows: Batch, values: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return the parts of data, completed by draws and by means given codes, one of each datum."""
        args, kwargs = arguments(rows)
        trace = with_values(self.drawn, [value[0] for value in values])
        found = poutine.trace(poutine.replay(self.model, trace=trace)).get_trace(*args, **kwargs)
        parts, means = tensors_of(rows), tensors_of(rows)
        for name, number in self.left_out.numbers.items():
            missing, fn = parts[number].isnan(), found.nodes[name]["fn"]
            draw = fn.sample().to(parts[number])
            try:
                mean = mean_of(fn).to(draw)
            except NoMeanError:
                mean = draw
            parts[number], means[number] = draw.where(missing, parts[number]), mean.where(missing, means[number])
        return parts, means


def _repeated(rows: Batch, times: int) -> Batch:
    return map_tensors(lambda x: x.repeat(times, *[1] * (x.dim() - 1)), rows)


_Particles.__name__ = NAME  # the name that an objective's errors use
