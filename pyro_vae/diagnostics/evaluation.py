"""Evaluation of a pair of programs on data: the bound and its terms, in nats per datum."""

from collections.abc import Collection
from typing import Any, NamedTuple

import pyro
import torch
from pyro.distributions.torch_distribution import ExpandedDistribution
from pyro.infer import ELBO, Trace_ELBO, TraceEnum_ELBO, TraceTMC_ELBO
from torch import Tensor
from torch.distributions import Independent

from pyro_vae.arguments import as_size
from pyro_vae.data import Ready, Rows, count_in
from pyro_vae.data.batch import Batch, Count, arguments
from pyro_vae.diagnostics.likelihood import log_likelihood as log_likelihood
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
from pyro_vae.objectives.particles import on_particles
from pyro_vae.programs import Program, Transform, as_input, check_programs, mode, paired_traces, seeded, transformed
from pyro_vae.programs.handlers import AtMean, LocalModules
from pyro_vae.programs.seeds import noise_seed
from pyro_vae.programs.traces import in_one_line
from pyro_vae.runtime.distributed import Ranks


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
            with in_one_line(batch), on_particles(type(loss).__name__, _at_a_time(loss)):
                terms = (_at_mean if at == "mean" else _at_sample)(*pair, batch, count(rows), loss, plates)
            total += torch.tensor(terms, dtype=torch.float64)
    return Bound(*(ranks.sum(total) / len(x)).tolist())


def _at_a_time(loss: ELBO) -> str:
    """Return the name of what an objective runs side by side, in a dimension that the data do not have, or ""."""
    if isinstance(loss, Objective) or loss.vectorize_particles:
        return "particles"
    return "all values of a site" if isinstance(loss, TraceEnum_ELBO | TraceTMC_ELBO) else ""


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
