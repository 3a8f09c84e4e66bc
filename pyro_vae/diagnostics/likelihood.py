"""The log-likelihood of data under a model, by importance sampling from the guide, in nats per datum."""

import math
from contextlib import nullcontext
from functools import partial
from typing import Any, Literal, overload

import pyro
import torch

from pyro_vae.arguments import as_size
from pyro_vae.data import Ready, count_in, pieces
from pyro_vae.data.batch import Count, cut
from pyro_vae.diagnostics.particles import MANY, Particles, replayed
from pyro_vae.diagnostics.vectors import check_in_order
from pyro_vae.diagnostics.weights import LogLikelihood, check_order, jackknifed, summary, warn_of_tails
from pyro_vae.objectives.particles import on_particles
from pyro_vae.programs import Program, as_input, check_programs, mode, seeded
from pyro_vae.programs.handlers import LocalModules
from pyro_vae.programs.seeds import noise_seed
from pyro_vae.runtime.memory import as_bytes, keep_freed_memory
from pyro_vae.runtime.progress import bar


@overload
def log_likelihood(
    model: Program,
    guide: Program,
    data: Any,
    *,
    samples: int = ...,
    memory: int | str = ...,
    seed: int = ...,
    count: Count | None = ...,
    per_datum: Literal[False] = False,
    jackknife: int = ...,
    progress: bool = ...,
) -> float: ...


@overload
def log_likelihood(
    model: Program,
    guide: Program,
    data: Any,
    *,
    samples: int = ...,
    memory: int | str = ...,
    seed: int = ...,
    count: Count | None = ...,
    per_datum: Literal[True],
    jackknife: int = ...,
    progress: bool = ...,
) -> LogLikelihood: ...


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
    per_datum: bool = False,
    jackknife: int = 0,
    progress: bool = False,
) -> float | LogLikelihood:
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
        samples: K, at least 1, and above the order of the jackknife.
        memory: limit for the tensors of particles at a time, not counting data and programs: a number of bytes, or a
            text such as "512MB" or "2GiB". A CPU uses less if that is faster. Results change with it only by rounding,
            unless it is so small that fewer data are drawn for at a time, which changes the noise.
        seed: random seed of the noise; torch's own random state does not change.
        count: returns the number of data of a ready batch.
        per_datum: return the estimate of each datum, with its standard error, effective sample size and Pareto k.
        jackknife: 1 or 2 removes the first terms of the bias in 1/K (see `pyro_vae.diagnostics.weights.jackknifed`);
            the estimate is then no longer a lower bound.
        progress: show a progress bar.

    Returns:
        The estimate in nats per datum, which is not a loss: larger is better. With ``per_datum`` a `LogLikelihood`, on
        the CPU, in the order of the data.

    Raises:
        TypeError, ValueError: as for `evaluate`; for fewer than one sample; for a memory that is not an amount, or is
            too small for the samples of one datum; for sites that are not in one plate over the data, that are scaled,
            that only one program draws, or whose distribution in the guide is a ``Delta``; with ``per_datum``, for a
            loader that shuffles.

    Example:
        >>> from pyro_vae import VAE, data, decoders, encoders, evaluate, priors
        >>> x = data.load("digits").test
        >>> vae = VAE(priors.Normal(2), encoders.Normal((1, 8, 8), 2), decoders.Bernoulli(2, (1, 8, 8), grey=True))
        >>> log_likelihood(vae.model, vae.guide, x, samples=50) > -evaluate(vae.model, vae.guide, x).loss
        True

        With the error of each estimate, for a model whose likelihood is known to be -4.13:

        >>> from pyro_vae.diagnostics.estimators import linear_gaussian
        >>> vae, x = linear_gaussian(count=1)
        >>> found = log_likelihood(vae.model, vae.guide, x, per_datum=True)
        >>> found.estimate.round(decimals=1), bool(found.standard_error < 0.05)
        (tensor([-4.1000], dtype=torch.float64), True)

    Reference:
        Burda, Grosse and Salakhutdinov, 2016, Importance Weighted Autoencoders, equation 8 and section 5. Of the
        jackknife: Nowozin, 2018, Debiasing Evidence Approximations. Of Pareto k: Vehtari et al., 2024, Pareto Smoothed
        Importance Sampling.
    """
    samples, budget = as_size(samples, "samples"), as_bytes(memory)
    check_order(jackknife, samples)
    if per_datum:
        check_in_order(data, "the estimates of data")
    x = as_input(data, model, guide, count=count)
    of_weights: Any = partial(summary if per_datum else jackknifed, order=jackknife)
    count_rows, local, found = count_in(x), LocalModules(), []
    keep_freed_memory()
    with seeded(noise_seed(seed), x.device), mode(False, model, guide), bar(len(x), "data", shown=progress) as shown:
        check_programs(model, guide, x)
        with pyro.validation_enabled(False), on_particles(log_likelihood.__name__):  # all data have been checked
            weights = _Particles(local(model), local(guide), count_rows)
            weights.meet(x[:2])  # one datum would not reveal a wrong dimension
            with seeded(noise_seed(seed), x.device):
                batch_size, chunk = weights.sizes(lambda size: x[:size], len(x), samples, budget)
            batches, chunks = math.ceil(len(x) / batch_size), math.ceil(samples / chunk)
            draw = replayed(partial(weights.draw, count=samples), batches, batches * chunks >= MANY)
            weigh = replayed(weights.weigh, batches * chunks, batches * chunks >= MANY)
            for whole in x.split(batch_size):
                with seeded(noise_seed(seed), x.device) if isinstance(x, Ready) else nullcontext():
                    if isinstance(x, Ready) and weights.meet(cut(whole, 2, count_rows)):  # its sites may differ
                        first = partial(cut, whole, count=count_rows)
                        batch_size, chunk = weights.sizes(first, count_rows(whole), samples, budget)
                for rows in pieces(whole, batch_size, count_rows):
                    weights.check_masks(rows)
                    parts = zip(*(drawn.split(chunk) for drawn in draw(rows)), strict=True)
                    found.append(of_weights(torch.cat([weigh(rows, *part)[0].cpu() for part in parts])))
                    estimates = found[-1].estimate if per_datum else found[-1]
                    weights.check_finite(estimates.isnan(), rows, "the log-likelihood")
                    shown.update(count_rows(rows))
    if not per_datum:
        return torch.cat(found).mean().item()
    each = LogLikelihood(*map(torch.cat, zip(*found, strict=True)))
    warn_of_tails(each.pareto_k)
    return each


class _Particles(Particles):
    pass


_Particles.__name__ = log_likelihood.__name__  # the name that an objective's errors use
