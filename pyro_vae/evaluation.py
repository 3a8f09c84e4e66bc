"""What a pair of programs is worth on data: the bound and its terms, in nats per datum."""

import math
from typing import Any, NamedTuple

import pyro
import torch
from pyro.infer import ELBO, Trace_ELBO
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.utils.data import Dataset

from pyro_vae.data import Rows
from pyro_vae.distributed import Ranks
from pyro_vae.handlers import AtMean, LocalModules
from pyro_vae.networks import as_size
from pyro_vae.objectives import Objective, kl, reconstruction, recording, terms_of
from pyro_vae.objectives._objective import log_prob
from pyro_vae.programs import Program, Transform, as_input, check_programs, mode, paired_traces, seeded


class Bound(NamedTuple):
    """The negative bound on data and its two terms, in nats per datum."""

    loss: float
    reconstruction: float
    kl: float


def evaluate(
    model: Program,
    guide: Program,
    data: Tensor | Dataset[Any],
    *,
    loss: ELBO = Trace_ELBO(),  # noqa: B008 (never changed)
    at: str = "sample",
    batch_size: int = 1000,
    seed: int = 0,
    transform: Transform | None = None,
) -> Bound:
    r"""Return the negative bound of a pair of programs on data, and its two terms.

    .. math:: -\mathcal{L} = \mathbb{E}_{q(z|x)} [-\log p(x|z)] + \mathrm{KL}(q(z|x) \,\|\, p(z))

    Arguments:
        model: the Pyro program of p(x, z), called with a batch.
        guide: the Pyro program of q(z|x), called with a batch.
        data: a tensor whose first dimension counts the data, or a data set.
        loss: the objective, an ELBO of Pyro's.
        at: "sample" takes z from the posterior, as ``loss`` does. "mean" reconstructs from the posterior's mean
            instead, and takes the KL in closed form where there is one, else from a sample: a customary figure, but no
            bound.
        batch_size: how many data at a time, at least 1; it changes the speed and the noise, not what is estimated.
        seed: of the noise, which leaves torch's own random state alone.
        transform: what is done to a batch before both programs see it, such as `pyro_vae.data.dynamic`.

    Returns:
        ``loss``, ``reconstruction`` and ``kl`` in nats per datum.

    Raises:
        TypeError, ValueError: as `fit`, for data and programs that do not fit; for an unknown ``at``.

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
    as_size(batch_size, "batch_size")
    x = as_input(data, model, guide)
    with pyro.validation_enabled():  # also where it is off: Pyro refuses some pairs of programs and ELBO by it alone
        with seeded(seed, x.device), mode(False, model, guide):
            check_programs(model, guide, x, transform)
        return mean_bound(model, guide, x, loss=loss, at=at, batch_size=batch_size, seed=seed, transform=transform)


@torch.no_grad()
def mean_bound(
    model: Program,
    guide: Program,
    x: Rows,
    *,
    loss: ELBO,
    at: str = "sample",
    batch_size: int = 1000,
    seed: int = 0,
    transform: Transform | None = None,
    ranks: Ranks = Ranks(),  # noqa: B008 (never changed)
) -> Bound:
    """Do what `evaluate` does, on a tensor that lies on the right device and has been checked, each rank its part."""
    total = torch.zeros(3, dtype=torch.float64)
    local = LocalModules()
    with seeded(ranks.seed(seed), x.device), mode(False, model, guide):
        for rows in filter(len, map(ranks.part, x.split(batch_size))):
            batch = transform(rows) if transform else rows
            pair = local(model), local(guide)
            terms = _at_mean(*pair, batch) if at == "mean" else _at_sample(*pair, batch, loss)
            total += torch.tensor(terms, dtype=torch.float64)
    return Bound(*(ranks.sum(total) / len(x)).tolist())


def _at_sample(model: Program, guide: Program, batch: Tensor, loss: ELBO) -> tuple[float, float, float]:
    if isinstance(loss, Objective):
        terms = loss.terms(model, guide, batch)
        return terms.negative_bound.item(), terms.reconstruction.item(), terms.kl.item()
    recorder, traces = recording(loss)
    try:
        value = float(recorder.loss(model, guide, batch))
    except NotImplementedError as error:
        raise ValueError(f"{type(loss).__name__} does not take these programs: {error}") from error
    reconstruction, kl = terms_of(recorder, traces or [paired_traces(model, guide, batch)], value=value)
    traces.clear()  # the recorder refers to itself, and would keep them until Python looks for such
    return value, reconstruction.item(), kl.item()


def _at_mean(model: Program, guide: Program, batch: Tensor) -> tuple[float, float, float]:
    at_mean, _ = paired_traces(model, AtMean()(guide), batch)
    at_sample = paired_traces(model, guide, batch)  # for a KL without a closed form: at the mean it is not estimated
    terms = float(reconstruction(at_mean)), float(kl(*at_sample, closed_form=True))
    return sum(terms), *terms


class _LogLikelihood(Objective):
    """The log-weights of particles, of which no gradient is asked: any sampler will do."""

    pathwise = False


@torch.no_grad()
def log_likelihood(
    model: Program,
    guide: Program,
    data: Tensor | Dataset[Any],
    *,
    samples: int = 5000,
    chunk: int = 250,
    batch_size: int = 10,
    seed: int = 0,
) -> float:
    r"""Estimate the log-likelihood of data under a model, by importance sampling from the guide.

    .. math:: \frac1N \sum_n \log \frac1K \sum_{k=1}^K \frac{p(x_n, z_{nk})}{q(z_{nk}|x_n)},
              \qquad z_{nk} \sim q(z|x_n)

    In the mean this is a lower bound, that of `pyro_vae.objectives.IWAE`, and it grows with K towards the mean of
    :math:`\log p(x_n)`. It does so slowly where the guide misses a part of the posterior. The guide runs once for each
    datum; the model then weighs ``chunk`` particles of ``batch_size`` data at a time, which is what is in memory. On a
    CPU a few thousand together are fastest, as they stay in its cache; a GPU takes more.

    Arguments:
        model: the Pyro program of p(x, z), called with a batch; every site stands in one plate, over the data.
        guide: the Pyro program of q(z|x), called with a batch; it needs no pathwise sampler, but a density.
        data: a tensor whose first dimension counts the data, or a data set.
        samples: K, at least 1.
        chunk: how many particles the model weighs at a time, at least 1; it changes the speed, and no number by more
            than rounding.
        batch_size: how many data at a time, at least 1; it changes the speed and the noise, not what is estimated.
        seed: of the noise, which leaves torch's own random state alone.

    Returns:
        The estimate in nats per datum, which is no loss: larger is better.

    Raises:
        TypeError, ValueError: as `evaluate`; for sizes below 1; for sites that do not stand in one plate over the
            data, are scaled, or that one program alone draws.

    Example:
        >>> from pyro_vae import VAE, data, decoders, encoders, priors
        >>> x = data.load("digits").test
        >>> vae = VAE(priors.Normal(2), encoders.Normal((1, 8, 8), 2), decoders.Bernoulli(2, (1, 8, 8), grey=True))
        >>> log_likelihood(vae.model, vae.guide, x, samples=50) > -evaluate(vae.model, vae.guide, x).loss
        True

    Reference:
        Burda, Grosse and Salakhutdinov, 2016, Importance Weighted Autoencoders, equation 8 and section 5.
    """
    sizes = [as_size(size, name) for size, name in ((samples, "samples"), (chunk, "chunk"), (batch_size, "batch_size"))]
    samples, chunk, batch_size = sizes
    x = as_input(data, model, guide)
    local, total = LocalModules(), 0.0
    with seeded(seed, x.device), mode(False, model, guide):
        check_programs(model, guide, x)
        pair = local(model), local(guide)
        with pyro.validation_enabled(False):  # all data have been checked
            for rows in x.split(batch_size):
                total += _log_of_summed_weights(*pair, rows, samples, chunk).sum().item()
    return total / len(x) - math.log(samples)


def _log_of_summed_weights(model: Program, guide: Program, batch: Tensor, samples: int, chunk: int) -> Tensor:
    objective = _LogLikelihood(samples)
    drawn = objective.guide_trace(guide, batch, particles=samples)
    log_q = log_prob(drawn, drawn.stochastic_nodes)
    total = torch.full((len(batch),), -math.inf, dtype=torch.float64, device=batch.device)
    for start in range(0, samples, chunk):
        count = min(chunk, samples - start)
        trace = objective.model_trace(model, _particles(drawn, start, count), batch, particles=count)
        joint = log_prob(trace, [*trace.stochastic_nodes, *trace.observation_nodes])
        total = total.logaddexp((joint - log_q[start : start + count]).double().logsumexp(0))
    return total


def _particles(trace: Trace, start: int, count: int) -> Trace:
    """Return the trace of some of the particles."""
    part = trace.copy()
    for name in trace.stochastic_nodes:
        site = trace.nodes[name]
        axis = site["value"].dim() - site["fn"].event_dim - 2
        part.nodes[name] = site | {"value": site["value"].narrow(axis, start, count)}
    return part


def kl_parts(posterior: Any, prior: Any) -> tuple[Tensor, Tensor] | None:
    r"""Split the mean KL of normal posteriors from a normal prior by dimension, into mean and variance.

    .. math:: \tfrac{1}{2} \mathbb{E} [\sigma_d^2 - 1 - \log \sigma_d^2] \quad \text{and} \quad
              \tfrac{1}{2} \mathbb{E} [\mu_d^2],

    with :math:`\mu, \sigma` in units of the prior. Their sum over d is the KL.

    Arguments:
        posterior: q(z|x), batch shape (B,), event shape (D,).
        prior: p(z), batch shape (), event shape (D,).

    Returns:
        The variance part and the mean part, each of shape (D,), in nats per datum; None where either is no diagonal
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
    q, p = (getattr(distribution, "base_dist", distribution) for distribution in (posterior, prior))
    if not all(isinstance(base, torch.distributions.Normal) for base in (q, p)):
        return None
    mean, variance = (q.loc - p.loc) / p.scale, (q.scale / p.scale) ** 2
    return (variance - 1 - variance.log()).mean(0) / 2, (mean**2).mean(0) / 2
