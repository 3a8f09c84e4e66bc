"""Particles of a pair of programs, and their densities."""

from collections.abc import Callable, Iterator
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_vae.data.batch import Batch, Count, arguments, cut, structure_of, tensors_of, with_tensors
from pyro_vae.diagnostics.weights import log_sums_without_one
from pyro_vae.distributions.wrappers import is_masked
from pyro_vae.objectives import Objective, made_for
from pyro_vae.objectives._objective import log_prob, with_values
from pyro_vae.objectives.particles import PARTICLES
from pyro_vae.programs import Program
from pyro_vae.programs.seeds import seeded
from pyro_vae.programs.sites import mask_of, moved_points, points_of
from pyro_vae.programs.traces import probe
from pyro_vae.runtime.engine import WORTHWHILE
from pyro_vae.runtime.held import Held
from pyro_vae.runtime.memory import KEPT, most_within, peak_of
from pyro_vae.runtime.recording import Recorded

LOOKED_AT = 10  # particles among which a site that is NaN is looked for
NOT_FINITE = "nan or infinite"
MANY = 10_000  # calls; compiling takes the time that it saves on about 4,000 of them


def replayed(step: Callable[..., Any], times: int, compiled: bool) -> Callable[..., Any]:
    """Return a step that is replayed from a recording, if that is worthwhile, possible, and changes no digit."""
    if times < WORTHWHILE or Held(step).foreign:
        return step
    return Recorded(step, compiled=compiled, quiet=True)


class Particles(Objective):
    """Particles of a pair of programs, for some data at a time: their values and their densities.

    Densities need no gradient of the draws, so the guide needs no pathwise sampler.

    Arguments:
        model: the Pyro program of p(x, z).
        guide: the Pyro program of q(z|x).
        count: returns the number of data of a batch.
    """

    pathwise = False
    weighs = True  # draws by their density, which a point has not
    about_codes = False  # which data that are masked as a whole, such as padding, have not

    def __init__(self, model: Program, guide: Program, count: Count) -> None:
        super().__init__(2)  # particles, as a model may accept one of a single datum, but not several
        self.model, self.guide, self.count, self.count_data = model, guide, count, count
        self.structure: Any = ()
        self.checked = 0  # data whose results have been checked
        self.observed: dict[tuple[str, int], list[int]] = {}  # parts that a site observes, by its name and their number

    @torch.no_grad()
    def meet(self, datum: Batch) -> bool:
        """Find the sites of a datum, and return whether its structure differs from that of the one before."""
        structure = structure_of(datum)
        if structure is not None and structure == self.structure:
            return False  # and nothing changes, as a recording would have to be made again
        self.structure = structure
        args, kwargs = arguments(datum)
        self.drawn = self.guide_trace(self.guide, *args, particles=1, **kwargs)  # only the sites, not their values
        self.one_by_one = made_for(self, self.model, self.guide, [datum], self.count).one_by_one
        values = [self.drawn.nodes[name]["value"] for name in self.drawn.stochastic_nodes]
        self.of_particles(self.model, self.drawn, 1, values, *args, **kwargs)  # refuses programs that do not fit
        self.latents = self.drawn.stochastic_nodes
        if self.weighs and points_of(self.drawn):
            _, plain = probe(lambda *_, **__: None, self.guide, datum)
            auxiliary = [name for name in self.latents if plain.nodes[name]["infer"].get("is_auxiliary")]
            moved = moved_points(auxiliary, plain, self.guide, datum)  # these have the density of what moves them
            if points := sorted(points_of(plain) - moved):
                raise ValueError(
                    f"{type(self).__name__} weighs draws by their density, which a Delta at site {points[0]!r} has not:"
                    " take an encoder that has one, or the reconstruction alone (pyro_vae.evaluate, pyro-vae"
                    " reconstruct)"
                )
        return True

    def check_masks(self, rows: Batch) -> None:
        """Refuse a site that is masked where other sites depend on it, or where its codes are looked at.

        Without its prior there is no p(x) in the first case, and nothing to compare the code with in the second.
        """
        sites = [self.drawn.nodes[name] for name in self.latents]
        masked = [site["name"] for site in sites if site["mask"] is not None or is_masked(site["fn"])]
        if not masked:
            return
        args, kwargs = arguments(rows)
        with seeded(0, tensors_of(rows)[0].device):
            trace = self.guide_trace(self.guide, *args, particles=5, **kwargs)
            sites = [trace.nodes[name] for name in self.latents]
            values = [site["value"] for site in sites]
            others = [value.roll(1, 0).where(~mask_of(site), value) for value, site in zip(values, sites, strict=True)]
            one, other = (torch.stack(self.log_p(rows, *each)).sum(0) for each in (values, others))
        if not torch.allclose(one, other, rtol=1e-5, atol=1e-5, equal_nan=True):
            raise ValueError(
                f"{type(self).__name__} weighs draws by their densities, but site {masked[0]!r} has a mask where other"
                " sites depend on it, so that there is no p(x): mask what depends on it, too, or leave the mask out"
            )
        if self.about_codes and (without := [site["name"] for site in sites if not mask_of(site).all()]):
            raise ValueError(
                f"{type(self).__name__} looks at the codes of all data, but site {without[0]!r} is masked for some,"
                " so that the model gives them no code: leave these data out"
            )

    def check_repeated(self, rows: Batch, program: str, density: Callable[..., Tensor], fix: str) -> None:
        """Refuse a program that gives the same values another density at each call.

        Arguments:
            rows: some data.
            program: what the program is called.
            density: returns its log-densities of values, given the data.
            fix: what to do instead.
        """
        with seeded(0, tensors_of(rows)[0].device):
            values = self.draw(rows, 2)[1:]
            one, other = density(rows, *values), density(rows, *values)
        if not torch.allclose(one, other, rtol=1e-4, atol=1e-4, equal_nan=True):
            raise ValueError(
                f"{type(self).__name__} needs the density of one value several times, and the {program} gives another"
                f" one each time, by noise that it draws beside its sites: {fix}"
            )

    def check_finite(self, wrong: Tensor, rows: Batch, what: str, how: str = "nan") -> None:
        """Refuse results that are NaN, or not finite, and name the datum and the site that they come from.

        Arguments:
            wrong: for each datum whether its result is wrong, shape (B,).
            rows: these data, which follow those that have been checked before.
            what: the result.
            how: what is wrong with it.
        """
        first, self.checked = self.checked, self.checked + len(wrong)
        if wrong.any():
            datum = int(wrong.nonzero()[0])
            sites = [name for name, densities in self._densities(rows) if densities[..., datum].isnan().any()]
            where = f" at site {sites[0]!r}" if sites else ""
            fix = "correct the parameters of the programs, or the datum"
            raise ValueError(f"{what} of datum {first + datum} is {how}{where}: {fix}")

    def _densities(self, rows: Batch) -> Iterator[tuple[str, Tensor]]:
        """Return the log-density of each site for some new particles, shape (K, B)."""
        args, kwargs = arguments(rows)
        guide = self.guide_trace(self.guide, *args, particles=1 if self.one_by_one else LOOKED_AT, **kwargs)
        values = [guide.nodes[name]["value"] for name in self.latents]
        drawn = with_values(guide, [value[0] for value in values] if self.one_by_one else values)
        particles = None if self.one_by_one else LOOKED_AT
        for trace in (guide, self.model_trace(self.model, drawn, *args, particles=particles, **kwargs)):
            for name in [*trace.stochastic_nodes, *trace.observation_nodes]:
                densities = log_prob(trace, [name])
                yield name, densities.expand(*densities.shape[:-1], self.count(rows))

    def draw(self, rows: Batch, count: int) -> list[Tensor]:
        """Draw particles for some data: return their log q, shape (K, B), and the sites' values, shape (K, B, ...)."""
        args, kwargs = arguments(rows)
        trace = self.guide_trace(self.guide, *args, particles=count, **kwargs)
        log_q = log_prob(trace, self.latents)
        if self.latents:
            self._check_count(log_q.shape[-1], rows)
        log_q = log_q.expand(count, self.count(rows))  # a single number if there is no site
        return [log_q, *(trace.nodes[name]["value"] for name in self.latents)]

    def log_p(self, rows: Batch, *values: Tensor) -> tuple[Tensor, Tensor]:
        """Return log p(x|z) and log p(z) of particles, each of shape (K, B)."""
        args, kwargs = arguments(rows)
        count = 1 if self.one_by_one else len(values[0]) if values else 1
        parts = zip(*(value.split(count) for value in values), strict=True) if values else [()]
        of_parts = [
            torch.broadcast_tensors(*self.of_particles(self.model, self.drawn, count, part, *args, **kwargs)[:2])
            for part in parts
        ]
        likelihood, prior = map(torch.cat, zip(*of_parts, strict=True))
        return likelihood, prior

    def log_q(self, rows: Batch, *values: Tensor) -> Tensor:
        """Return log q(z|x) of particles, shape (K, B)."""
        args, kwargs = arguments(rows)
        plated = pyro.plate(PARTICLES, len(values[0]), dim=-2)(self.guide)
        trace = self._checked(poutine.replay(plated, trace=with_values(self.drawn, values)), *args, **kwargs)
        return log_prob(trace, self.latents)

    def log_joint(self, rows: Batch, *values: Tensor) -> Tensor:
        """Return log p(x, z) of particles, shape (K, B)."""
        likelihood, prior = self.log_p(rows, *values)
        return likelihood + prior

    def weigh(self, rows: Batch, log_q: Tensor, *values: Tensor) -> tuple[Tensor]:
        """Return the logarithms of the weights of particles, shape (K, B), in double precision."""
        return ((self.log_joint(rows, *values) - log_q).double(),)

    def simulated(self, rows: Batch, *, given: bool = False) -> tuple[Batch, list[Tensor]]:
        """Return data that the model draws in place of those it observes, and the codes that they are made from.

        Arguments:
            rows: the data.
            given: take codes from the guide, given the data, rather than from the prior.
        """
        args, kwargs = arguments(rows)
        drawn = poutine.trace(self.guide).get_trace(*args, **kwargs) if given else Trace()
        known = poutine.block(self.model, hide_fn=lambda site: site["infer"].get("_deterministic", False))
        model = poutine.uncondition(poutine.replay(known, trace=drawn))
        trace = poutine.trace(model).get_trace(*args, **kwargs)
        tensors = tensors_of(rows)
        for name, site in trace.nodes.items():
            observed = site["infer"].get("obs") if site["type"] == "sample" else None
            if observed is None:
                continue
            key = name, len(tensors)
            before = self.observed.get(key, range(len(tensors)))  # a few data may have equal parts by chance
            same = self.observed[key] = [number for number in parts_in(observed, tensors) if number in before]
            if not same:
                raise ValueError(
                    f"the model observes something at site {name!r} that the data do not hold as it is, so that no"
                    " simulated data can take its place: let it observe a tensor of the batch"
                )
            for number in same:
                tensors[number] = site["value"].to(observed.dtype).where(~observed.isnan(), observed)
        simulated, codes = with_tensors(rows, tensors), self.values_in(trace)
        self._check_used_once(trace, simulated)
        return simulated, codes

    def _check_used_once(self, drawn: Trace, simulated: Batch) -> None:
        """Refuse a model that also uses elsewhere what it observes, as its draws are then not of the simulated data."""
        args, kwargs = arguments(simulated)
        with_codes = poutine.replay(self.model, trace=drawn.copy())
        again = poutine.trace(with_codes).get_trace(*args, **kwargs)
        for name in again.observation_nodes:
            site, before = again.nodes[name], drawn.nodes.get(name)  # a value that is computed is in one of them
            if before and not _scores_alike(before["fn"], site["fn"], site["value"]):
                raise ValueError(
                    f"the model observes data at site {name!r} that it also uses elsewhere, so that it cannot simulate"
                    " them: let it use them where they are observed alone"
                )

    def values_in(self, model_trace: Trace) -> list[Tensor]:
        """Return the values of all latent sites in a trace of the model; refuse sites that the guide alone draws."""
        if alone := [name for name in self.latents if name not in model_trace.nodes]:
            raise ValueError(
                f"{type(self).__name__} compares what both programs draw, but the guide alone draws site {alone[0]!r}:"
                " take a guide without auxiliary sites"
            )
        if not self.latents:
            raise ValueError(f"{type(self).__name__} is about codes, and the programs draw none: take evaluate")
        return [model_trace.nodes[name]["value"] for name in self.latents]

    def data_within(self, memory: int, batch: Batch, draws: int, most: int) -> int:
        """Return how many data can be encoded, or simulated, at a time."""

        def both(rows: Batch) -> None:
            args, kwargs = arguments(rows)
            poutine.trace(self.model).get_trace(*args, **kwargs), self.draw(rows, draws)

        return data_within(memory, both, batch, most, self.count)

    def sizes(self, first: Callable[[int], Batch], total: int, samples: int, memory: int) -> tuple[int, int]:
        """Return for how many data to draw, and how many particles to weigh, at a time; each may take half the memory.

        A CPU is fastest if the tensors of a chunk reuse the memory of those of the chunk before.
        """
        datum = first(1)
        on_cpu = all(tensor.device.type == "cpu" for tensor in tensors_of(datum))

        def most(peak: Callable[[int], int], count: int) -> int:
            half = memory // 2
            return (on_cpu and most_within(min(half, KEPT), peak, count)) or most_within(half, peak, count)

        def of_draws(data: Batch, count: int) -> int:
            return peak_of(
                lambda: (self.draw(data, count), log_sums_without_one(torch.zeros(count, self.count(data)).double()))
            )

        def of_weights(count: int) -> int:
            drawn = self.draw(datum, count)
            return peak_of(lambda: self.weigh(datum, *drawn))

        particles = most_within(memory // 2, lambda count: of_draws(datum, count), samples)
        data = particles == samples and most(lambda count: of_draws(first(count), samples), total)
        rows = most(of_weights, samples * total)
        if not (data and rows):
            raise ValueError(
                f"a memory of {memory:,} bytes is too small for {samples} samples of a datum: give more, or take fewer"
                " samples"
            )
        batch_size = min(data, rows)
        return batch_size, min(samples, rows // batch_size)


def _scores_alike(one: Any, other: Any, value: Tensor) -> bool:
    return torch.allclose(one.log_prob(value), other.log_prob(value), rtol=1e-4, atol=1e-4, equal_nan=True)


def data_within(memory: int, compute: Callable[[Batch], Any], batch: Batch, most: int, count: Count) -> int:
    """Return how many data of a batch a computation can take at a time without more memory than the limit.

    Arguments:
        memory: limit in bytes.
        compute: takes data, such as the first few of the batch.
        batch: the data.
        most: the most data that are wanted at a time, however much memory there is.
        count: returns the number of data of a batch.

    Raises:
        ValueError: if a single datum takes more.
    """
    most = min(most, count(batch))
    with seeded(0, tensors_of(batch)[0].device):  # what is computed later has the noise that it would have without
        size = most_within(memory, lambda rows: peak_of(lambda: compute(cut(batch, rows, count))), most)
    if not size:
        raise ValueError(f"a memory of {memory:,} bytes is too small for a single datum: give more")
    return size


def parts_in(observed: Any, parts: list[Tensor]) -> list[int]:
    """Return the numbers of the parts of the data that a program observes as they are: a part and its copies.

    Other parts may have the same values by chance where these are constant, such as labels and counts of 0.
    """
    equal = [number for number, part in enumerate(parts) if _is_equal(part, observed)]
    if any(parts[number] is observed for number in equal) and (observed == observed.flatten()[0]).all():
        return [number for number in equal if parts[number] is observed]
    return equal


def _is_equal(tensor: Tensor, observed: Any) -> bool:
    """Whether two tensors have the same values; missing entries are equal."""
    if not isinstance(observed, Tensor) or observed.shape != tensor.shape:
        return False
    return bool(((tensor == observed) | (tensor.isnan() & observed.isnan())).all())
