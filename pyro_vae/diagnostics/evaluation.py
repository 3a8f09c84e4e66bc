"""Evaluation of a pair of programs on data: the bound, its terms and the log-likelihood, in nats per datum."""

import math
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import pyro
import torch
from pyro.distributions.torch_distribution import ExpandedDistribution
from pyro.infer import ELBO, Trace_ELBO, TraceEnum_ELBO, TraceTMC_ELBO
from torch import Tensor
from torch.distributions import Independent

from pyro_vae.arguments import as_size
from pyro_vae.data import Ready, Rows, count_in, pieces
from pyro_vae.data.batch import Batch, Count, arguments, cut, structure_of, tensors_of
from pyro_vae.distributions.moments import NoMeanError
from pyro_vae.distributions.wrappers import layers
from pyro_vae.objectives import (
    Objective,
    check_per_datum,
    is_theirs,
    kl,
    made_for,
    reconstruction,
    recording,
    share_of,
    terms_of,
)
from pyro_vae.objectives._objective import log_prob
from pyro_vae.programs import Program, Transform, as_input, check_programs, mode, paired_traces, seeded, transformed
from pyro_vae.programs.handlers import AtMean, LocalModules
from pyro_vae.programs.seeds import noise_seed
from pyro_vae.programs.sites import moved_points, points_of
from pyro_vae.programs.traces import in_one_line, probe
from pyro_vae.runtime.distributed import Ranks
from pyro_vae.runtime.engine import WORTHWHILE
from pyro_vae.runtime.held import Held
from pyro_vae.runtime.memory import KEPT, as_bytes, keep_freed_memory, most_within, peak_of
from pyro_vae.runtime.recording import Recorded

MANY = 10_000  # chunks; compiling takes the time that it saves on about 4,000 of them


class Bound(NamedTuple):
    """The negative bound on data and its two terms, in nats per datum."""

    loss: float
    reconstruction: float
    kl: float


def evaluate(
    model: Program,
    guide: Program,
    data: Any,
    *,
    loss: ELBO = Trace_ELBO(),  # noqa: B008 (never changed)
    at: str = "sample",
    batch_size: int = 1000,
    seed: int = 0,
    transform: Transform | None = None,
    count: Count | None = None,
) -> Bound:
    r"""Return the negative bound of a pair of programs on data, and its two terms.

    .. math:: -\mathcal{L} = \mathbb{E}_{q(z|x)} [-\log p(x|z)] + \mathrm{KL}(q(z|x) \,\|\, p(z))

    If the programs' plate over the data has a size, ``pyro.plate("data", N, subsample_size=len(x))``, the result is the
    bound of N data divided by N, estimated from the given data: a site outside the plate counts 1/N per datum.

    Arguments:
        model: the Pyro program of p(x, z), called with a batch.
        guide: the Pyro program of q(z|x), called with a batch.
        data: what `fit` takes: tensors, alone or in a tuple or a dict, a data set, or ready batches.
        loss: the objective, a ``pyro.infer.ELBO``.
        at: "sample" draws z from the posterior, as ``loss`` does. "mean" reconstructs from the posterior's mean
            instead, and takes the KL in closed form if there is one, otherwise from a sample. That figure is common,
            but it is not a bound.
        batch_size: number of data at a time, at least 1; it changes the speed and the noise, not what is estimated.
        seed: random seed of the noise; torch's own random state does not change.
        transform: what is applied to a batch before both programs see it, such as `pyro_vae.data.dynamic`.
        count: returns the number of data of a ready batch.

    Returns:
        ``loss``, ``reconstruction`` and ``kl`` in nats per datum.

    Raises:
        TypeError, ValueError: as for `fit`, for data and programs that do not fit; for an unknown ``at``.

    Example:
        >>> from pyro_vae import VAE, data, decoders, encoders, priors
        >>> x = data.load("digits").test
        >>> vae = VAE(priors.Normal(2), encoders.Normal((1, 8, 8), 2), decoders.Bernoulli(2, (1, 8, 8), grey=True))
        >>> bound = evaluate(vae.model, vae.guide, x)
        >>> abs(bound.loss - (bound.reconstruction + bound.kl)) < 1e-3
        True

    Reference:
        Kingma and Welling, 2014, Auto-Encoding Variational Bayes, equation 3.
    """
    if at not in ("sample", "mean"):
        raise ValueError(f"at is 'sample' or 'mean', not {at!r}")
    if not isinstance(loss, ELBO):
        raise TypeError(f"loss must be an ELBO such as Trace_ELBO() or objectives.IWAE(5), not {loss!r}")
    check_per_datum(loss)
    as_size(batch_size, "batch_size")
    x = as_input(data, model, guide, count=count, transform=transform)
    with pyro.validation_enabled():  # without validation, Pyro would not refuse some programs that an ELBO cannot use
        with seeded(seed, x.device), mode(False, model, guide):
            plates = check_programs(model, guide, x, transform, batch_size)
            plates.check_objective(loss)
            local, count_rows = LocalModules(), count_in(x)
            rows = x.structures() if isinstance(x, Ready) else [x[:batch_size]]
            batches = (transformed(each, transform, count_rows) for each in rows)
            loss = made_for(loss, local(model), local(guide), batches, count_rows)
        settings = {"loss": loss, "at": at, "batch_size": batch_size, "seed": seed, "transform": transform}
        return mean_bound(model, guide, x, plates=plates.names, **settings)


@torch.no_grad()
def mean_bound(
    model: Program,
    guide: Program,
    x: Rows,
    *,
    loss: ELBO,
    plates: Collection[str] = (),
    at: str = "sample",
    batch_size: int = 1000,
    seed: int = 0,
    transform: Transform | None = None,
    ranks: Ranks = Ranks(),  # noqa: B008 (never changed)
) -> Bound:
    """Do what `evaluate` does, on rows that have been checked and are on the right device; each rank does its part.

    ``plates`` are the names of the programs' plates over the data, which the check returns.
    """
    total = torch.zeros(3, dtype=torch.float64)
    local, count = LocalModules(), count_in(x)
    with seeded(noise_seed(ranks.seed(seed)), x.device), mode(False, model, guide):
        for rows in filter(count, (ranks.part_of(whole, count) for whole in x.split(batch_size))):
            batch = transformed(rows, transform, count)
            pair = local(model), local(guide)
            with in_one_line(batch), _on_particles(type(loss).__name__, _at_a_time(loss)):
                terms = (_at_mean if at == "mean" else _at_sample)(*pair, batch, count(rows), loss, plates)
            total += torch.tensor(terms, dtype=torch.float64)
    return Bound(*(ranks.sum(total) / len(x)).tolist())


def _at_a_time(loss: ELBO) -> str:
    """Return the name of what an objective runs side by side, in a dimension that the data do not have, or ""."""
    if isinstance(loss, Objective) or loss.vectorize_particles:
        return "particles"
    return "all values of a site" if isinstance(loss, TraceEnum_ELBO | TraceTMC_ELBO) else ""


@contextmanager
def _on_particles(name: str, at_a_time: str = "particles") -> Iterator[None]:
    """Explain an error that is due to the dimension of the particles, as the programs have run without it before."""
    try:
        yield
    except (IndexError, RuntimeError, ValueError) as error:
        memory = isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in ("alloc", "overflow"))
        of_others = isinstance(error, ValueError) and not str(error).startswith("Shape mismatch inside plate")
        if memory or of_others or isinstance(error, NotImplementedError) or not at_a_time:
            raise
        raise ValueError(
            f"{name} runs the programs on {at_a_time}, a dimension to the left of that of the data, and they fail there"
            f" ({str(error).partition(chr(10))[0]}): let them count dimensions from the right (z[..., 0], not z[:, 0])"
            " and expand what they join (y.expand, then torch.cat), or evaluate by Trace_ELBO()"
        ) from error


def _at_sample(
    model: Program, guide: Program, batch: Batch, count: int, loss: ELBO, plates: Collection[str]
) -> tuple[float, float, float]:
    args, kwargs = arguments(batch)
    if isinstance(loss, Objective) and not is_theirs(loss, "loss"):
        terms = loss.terms(model, guide, *args, **kwargs)
        return terms.negative_bound.item(), terms.reconstruction.item(), terms.kl.item()
    recorder, traces = recording(loss)
    try:
        value = float(recorder.loss(model, guide, *args, **kwargs))
    except (AssertionError, KeyError, NotImplementedError) as error:
        reason = str(error) or "the guide has a site that the model has not (take Trace_ELBO)"  # by TraceMeanField_ELBO
        reason = f"only one of them draws site {error}" if isinstance(error, KeyError) else reason
        raise ValueError(f"{type(loss).__name__} does not take these programs: {reason}") from error
    pairs = traces or [paired_traces(model, guide, *args, **kwargs)]
    reconstruction, kl = terms_of(recorder, pairs, value=value)
    share = share_of(pairs, count, plates)
    traces.clear()  # the recorder refers to itself, and would keep them until Python collects such cycles
    return value * share, reconstruction.item() * share, kl.item() * share


def _at_mean(
    model: Program, guide: Program, batch: Batch, count: int, loss: ELBO, plates: Collection[str]
) -> tuple[float, float, float]:
    at_mean, (args, kwargs) = AtMean()(guide), arguments(batch)
    try:
        if isinstance(loss, TraceEnum_ELBO):  # it sums out sites that have no mean
            with pyro.validation_enabled(False):  # a mean is not a code of a discrete site, and its density cancels
                _, reconstructed, _ = _at_sample(model, at_mean, batch, count, loss, plates)
            _, _, divergence = _at_sample(model, guide, batch, count, loss, plates)
            return reconstructed + divergence, reconstructed, divergence
        pair = paired_traces(model, at_mean, *args, **kwargs)
    except (IndexError, RuntimeError, TypeError) as error:
        raise NoMeanError(
            f"the model does not take the mean of the guide's sites ({error}): take at='sample'"
        ) from error
    at_sample = paired_traces(
        model, guide, *args, **kwargs
    )  # for a KL without a closed form, which cannot be estimated at the mean
    share = share_of([at_sample], count, plates)
    terms = float(reconstruction(*pair)) * share, float(kl(*at_sample, closed_form=True)) * share
    return sum(terms), *terms


@torch.no_grad()
def log_likelihood(
    model: Program,
    guide: Program,
    data: Any,
    *,
    samples: int = 5000,
    memory: int | str = "2GB",
    seed: int = 0,
    count: Count | None = None,
) -> float:
    r"""Estimate the log-likelihood of data under a model, by importance sampling from the guide.

    .. math:: \frac1N \sum_n \log \frac1K \sum_{k=1}^K \frac{p(x_n, z_{nk})}{q(z_{nk}|x_n)},
              \qquad z_{nk} \sim q(z|x_n)

    The expectation of the estimate is a lower bound, that of `pyro_vae.objectives.IWAE`. It grows with K towards the
    mean of :math:`\log p(x_n)`, but slowly if the guide misses a part of the posterior. The guide runs once for each
    datum; the model then weighs the particles in chunks, whose weights are summed in double precision.

    Arguments:
        model: the Pyro program of p(x, z), called with a batch; every site is in one plate, over the data.
        guide: the Pyro program of q(z|x), called with a batch; it needs a density, but no pathwise sampler.
        data: what `fit` takes: tensors, alone or in a tuple or a dict, a data set, or ready batches.
        samples: K, at least 1.
        memory: limit for the tensors of particles at a time, not counting data and programs: a number of bytes, or a
            text such as "512MB" or "2GiB". A CPU uses less if that is faster. Results change with it only by rounding,
            unless it is so small that fewer data are drawn for at a time, which changes the noise.
        seed: random seed of the noise; torch's own random state does not change.
        count: returns the number of data of a ready batch.

    Returns:
        The estimate in nats per datum. It is not a loss: larger is better.

    Raises:
        TypeError, ValueError: as for `evaluate`; for fewer than one sample; for a memory that is not an amount, or is
            too small for the samples of one datum; for sites that are not in one plate over the data, that are scaled,
            that only one program draws, or whose distribution in the guide is a ``Delta``.

    Example:
        >>> from pyro_vae import VAE, data, decoders, encoders, priors
        >>> x = data.load("digits").test
        >>> vae = VAE(priors.Normal(2), encoders.Normal((1, 8, 8), 2), decoders.Bernoulli(2, (1, 8, 8), grey=True))
        >>> log_likelihood(vae.model, vae.guide, x, samples=50) > -evaluate(vae.model, vae.guide, x).loss
        True

    Reference:
        Burda, Grosse and Salakhutdinov, 2016, Importance Weighted Autoencoders, equation 8 and section 5.
    """
    samples, budget = as_size(samples, "samples"), as_bytes(memory)
    x = as_input(data, model, guide, count=count)
    count_rows = count_in(x)
    local, total = LocalModules(), 0.0
    keep_freed_memory()
    with seeded(noise_seed(seed), x.device), mode(False, model, guide):
        check_programs(model, guide, x)
        with pyro.validation_enabled(False), _on_particles(log_likelihood.__name__):  # all data have been checked
            weights = _LogLikelihood(local(model), local(guide), count_rows)
            weights.meet(x[:2])  # one datum would not reveal a wrong dimension
            with seeded(noise_seed(seed), x.device):
                batch_size, chunk = weights.sizes(lambda size: x[:size], len(x), samples, budget)
            batches, chunks = math.ceil(len(x) / batch_size), math.ceil(samples / chunk)
            draw = _replayed(partial(weights.draw, count=samples), batches, batches * chunks >= MANY)
            log_of_sum = _replayed(weights.log_of_sum, batches * chunks, batches * chunks >= MANY)
            for whole in x.split(batch_size):
                with seeded(noise_seed(seed), x.device) if isinstance(x, Ready) else nullcontext():
                    if isinstance(x, Ready) and weights.meet(cut(whole, 2, count_rows)):  # its sites may differ
                        first = partial(cut, whole, count=count_rows)
                        batch_size, chunk = weights.sizes(first, count_rows(whole), samples, budget)
                for rows in pieces(whole, batch_size, count_rows):
                    of_rows = torch.full((count_rows(rows),), -math.inf, dtype=torch.float64, device=x.device)
                    for part in zip(*(drawn.split(chunk) for drawn in draw(rows)), strict=True):
                        of_rows = of_rows.logaddexp(log_of_sum(rows, *part)[0])
                    total += of_rows.sum().item()
    return total / len(x) - math.log(samples)


def _replayed(step: Callable[..., Any], times: int, compiled: bool) -> Callable[..., Any]:
    """Return a step that is replayed from a recording, if that is worthwhile, possible, and changes no digit."""
    if times < WORTHWHILE or Held(step).foreign:
        return step
    return Recorded(step, compiled=compiled, quiet=True)


class _LogLikelihood(Objective):
    """The log-weights of particles. They need no gradient, so the guide needs no pathwise sampler."""

    pathwise = False

    def __init__(self, model: Program, guide: Program, count: Count) -> None:
        super().__init__(2)  # particles, as a model may accept one of a single datum, but not several
        self.model, self.guide, self.count, self.count_data = model, guide, count, count
        self.structure: Any = ()

    def meet(self, datum: Batch) -> bool:
        """Find the sites of a datum, and return whether its structure differs from that of the one before."""
        before, self.structure = self.structure, structure_of(datum)
        if self.structure is not None and self.structure == before:
            return False
        args, kwargs = arguments(datum)
        self.drawn = self.guide_trace(self.guide, *args, particles=1, **kwargs)  # only the sites, not their values
        self.one_by_one = made_for(self, self.model, self.guide, [datum], self.count).one_by_one
        values = [self.drawn.nodes[name]["value"] for name in self.drawn.stochastic_nodes]
        self.of_particles(self.model, self.drawn, 1, values, *args, **kwargs)  # refuses programs that do not fit
        self.latents = self.drawn.stochastic_nodes
        if points_of(self.drawn):
            _, plain = probe(lambda *_, **__: None, self.guide, datum)
            auxiliary = [name for name in self.latents if plain.nodes[name]["infer"].get("is_auxiliary")]
            moved = moved_points(auxiliary, plain, self.guide, datum)  # these have the density of what moves them
            if points := sorted(points_of(plain) - moved):
                raise ValueError(
                    f"log_likelihood weighs draws by their density, which a Delta at site {points[0]!r} has not: take"
                    " an encoder that has one, or evaluate"
                )
        return True

    def draw(self, rows: Batch, count: int) -> list[Tensor]:
        """Draw particles for some data: return their log q, shape (K, B), and the sites' values, shape (K, B, ...)."""
        args, kwargs = arguments(rows)
        trace = self.guide_trace(self.guide, *args, particles=count, **kwargs)
        log_q = log_prob(trace, self.latents)
        if self.latents:
            self._check_count(log_q.shape[-1], rows)
        log_q = log_q.expand(count, self.count(rows))  # a single number if there is no site
        return [log_q, *(trace.nodes[name]["value"] for name in self.latents)]

    def log_of_sum(self, rows: Batch, log_q: Tensor, *values: Tensor) -> tuple[Tensor]:
        """Return the logarithm of the sum of the weights of particles, for each datum."""
        args, kwargs = arguments(rows)
        count = 1 if self.one_by_one else len(log_q)
        chunks = [log_q.split(count), *(value.split(count) for value in values)]
        weights = []
        for part, *of_part in zip(*chunks, strict=True):
            likelihood, prior, _ = self.of_particles(self.model, self.drawn, count, of_part, *args, **kwargs)
            weights.append(likelihood + prior - part)
        return (torch.cat(weights).double().logsumexp(0),)

    def sizes(self, first: Callable[[int], Batch], total: int, samples: int, memory: int) -> tuple[int, int]:
        """Return for how many data to draw, and how many particles to weigh, at a time; each may take half the memory.

        A CPU is fastest if the tensors of a chunk reuse the memory of those of the chunk before.
        """
        datum = first(1)
        on_cpu = all(tensor.device.type == "cpu" for tensor in tensors_of(datum))

        def most(peak: Callable[[int], int], count: int) -> int:
            half = memory // 2
            return (on_cpu and most_within(min(half, KEPT), peak, count)) or most_within(half, peak, count)

        def weigh(count: int) -> int:
            drawn = self.draw(datum, count)
            return peak_of(lambda: self.log_of_sum(datum, *drawn))

        particles = most_within(memory // 2, lambda count: peak_of(lambda: self.draw(datum, count)), samples)
        data = particles == samples and most(lambda count: peak_of(lambda: self.draw(first(count), samples)), total)
        rows = most(weigh, samples * total)
        if not (data and rows):
            raise ValueError(
                f"a memory of {memory:,} bytes is too small for {samples} samples of a datum: give more, or take fewer"
                " samples"
            )
        batch_size = min(data, rows)
        return batch_size, min(samples, rows // batch_size)


_LogLikelihood.__name__ = log_likelihood.__name__  # the name that an objective's errors use


def kl_parts(posterior: Any, prior: Any) -> tuple[Tensor, Tensor] | None:
    r"""Split the mean KL from normal posteriors to a normal prior by dimension, into a variance and a mean part.

    .. math:: \tfrac{1}{2} \mathbb{E} [\sigma_d^2 - 1 - \log \sigma_d^2] \quad \text{and} \quad
              \tfrac{1}{2} \mathbb{E} [\mu_d^2],

    with :math:`\mu, \sigma` in units of the prior. Their sum over d is the KL.

    Arguments:
        posterior: q(z|x), batch shape (B,), event shape (D,).
        prior: p(z), batch shape (), event shape (D,).

    Returns:
        The variance part and the mean part, each of shape (D,), in nats per datum; None if either is not a diagonal
        normal distribution.

    Example:
        >>> import pyro.distributions as dist
        >>> prior = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        >>> posterior = dist.Normal(torch.tensor([[1.0, 0.0]]), 1.0).to_event(1)
        >>> kl_parts(posterior, prior)
        (tensor([0., 0.]), tensor([0.5000, 0.0000]))

    Reference:
        Kingma and Welling, 2014, Auto-Encoding Variational Bayes, appendix B.
    """
    shapes = Independent | ExpandedDistribution
    q, p = (
        next(layer for layer in layers(distribution) if not isinstance(layer, shapes))
        for distribution in (posterior, prior)
    )
    if not all(isinstance(base, torch.distributions.Normal) for base in (q, p)):
        return None
    mean, variance = (q.loc - p.loc) / p.scale, (q.scale / p.scale) ** 2
    return (variance - 1 - variance.log()).mean(0) / 2, (mean**2).mean(0) / 2
