"""What training adds to an ELBO: a weight on the KL, schedules for it, and the bound's two terms apart."""

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from pyro.infer import ELBO, TraceMeanField_ELBO
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_vae.distributions.kl import kl_or_none
from pyro_vae.networks import as_number
from pyro_vae.objectives._objective import Objective, Program, Terms

Beta = float | Callable[[int], float]


def linear_warm_up(steps: int, beta: float = 1.0) -> Callable[[int], float]:
    r"""Return a schedule for the KL weight that rises from 0 and then stays.

    .. math:: \beta_t = \beta \min(1, t / T), \quad t = 0, 1, \dots

    Arguments:
        steps: number of optimizer steps T until the weight is reached, at least 1.
        beta: the weight that is reached, at least 0.

    Returns:
        A function from the step (0 for the first) to the weight, for ``fit(..., beta=...)``.

    Raises:
        ValueError: for fewer than 1 step or a negative weight.

    Example:
        >>> [linear_warm_up(4)(step) for step in (0, 1, 4, 5)]
        [0.0, 0.25, 1.0, 1.0]

    Reference:
        Bowman et al., 2016, Generating Sentences from a Continuous Space, section 3.1.
    """
    if not as_number(steps, "the steps of a warm-up") >= 1:
        raise ValueError(f"a warm-up takes at least 1 step, not {steps!r}")
    check_beta(beta)
    return lambda step: beta * min(1.0, step / steps)


def check_beta(beta: float) -> float:
    """Return a KL weight, or refuse it.

    Arguments:
        beta: the weight.

    Returns:
        The weight, at least 0 and finite.

    Raises:
        TypeError: where it is no number.
        ValueError: for a negative or infinite weight.

    Example:
        >>> check_beta(0.5)
        0.5
    """
    if not 0 <= as_number(beta, "the KL weight beta") < math.inf:
        raise ValueError(f"the KL weight beta must be at least 0 and finite, not {beta!r}")
    return beta


def terms_and_gradients(loss: ELBO) -> Callable[..., tuple[Terms, list[Tensor | None]]]:
    """Return a function that computes an objective's terms and gradients.

    Arguments:
        loss: an objective of this package, or an ELBO of Pyro's; one that has only ``loss_and_grads``, such as
            ``TraceGraph_ELBO``, will do.

    Returns:
        A function of model, guide, batch, the KL weight that the programs carry, and a function that returns the
        parameters met; it returns the terms, summed over the batch, and the gradients of their mean.

    Example:
        >>> from pyro.infer import Trace_ELBO
        >>> from pyro_vae import VAE, decoders, encoders, priors
        >>> vae = VAE(priors.Normal(2), encoders.Normal(64, 2), decoders.Normal(2, 64))
        >>> compute = terms_and_gradients(Trace_ELBO())
        >>> terms, gradients = compute(vae.model, vae.guide, torch.zeros(5, 64), 1.0, lambda: list(vae.parameters()))
        >>> len(gradients) == len(list(vae.parameters()))
        True
    """
    recorder, traces = recording(loss)

    def compute(
        model: Program, guide: Program, batch: Tensor, beta: Tensor | float, parameters: Callable[[], list[Tensor]]
    ) -> tuple[Terms, list[Tensor | None]]:
        if isinstance(loss, Objective):
            return _with_gradients(loss.terms(model, guide, batch), batch, parameters())
        traces.clear()
        if hasattr(loss, "differentiable_loss"):
            value = recorder.differentiable_loss(model, guide, batch)
            return _with_gradients(_terms(recorder, traces, beta, value), batch, parameters())
        for parameter in parameters():
            parameter.grad = None
        value = torch.as_tensor(recorder.loss_and_grads(model, guide, batch))
        gradients = [None if p.grad is None else p.grad / len(batch) for p in parameters()]
        return _terms(recorder, traces, beta, value), gradients

    return compute


def _terms(loss: ELBO, traces: list[tuple[Trace, Trace]], beta: Tensor | float, value: Tensor) -> Terms:
    reconstruction, kl = terms_of(loss, traces, beta, value.detach())
    traces.clear()
    value = value.to(kl.dtype)  # in a recording it is of double precision up to here
    at_1 = value.detach() if isinstance(beta, float | int) and beta == 1 else value.detach() + (1 - beta) * kl
    return Terms(value, at_1, reconstruction, kl)


def _with_gradients(terms: Terms, batch: Tensor, parameters: list[Tensor]) -> tuple[Terms, list[Tensor | None]]:
    """Return the terms, and gradients of which none shares memory: what clips them writes into each."""
    seen: set[int] = set()
    gradients: list[Tensor | None] = []
    for gradient in torch.autograd.grad(terms.loss / len(batch), parameters, allow_unused=True):
        if gradient is not None:
            gradient = gradient.clone() if gradient.data_ptr() in seen else gradient.contiguous()
            seen.add(gradient.data_ptr())
        gradients.append(gradient)
    return Terms(*(term.detach() for term in terms)), gradients


def recording(loss: ELBO) -> tuple[ELBO, list[tuple[Trace, Trace]]]:
    """Return a copy of an ELBO that keeps the pairs of traces it makes, and the list it keeps them in.

    Every ELBO of Pyro 1.9 gets its traces, with their log-probabilities computed, from ``_get_traces``. To read the
    terms off them costs nothing; to run the programs a second time would.

    Arguments:
        loss: an ELBO of Pyro's, or one that draws its traces in the same way.

    Returns:
        The copy, and a list of (model trace, guide trace) that the caller empties after each use.

    Example:
        >>> from pyro.infer import Trace_ELBO
        >>> from pyro_vae import VAE, decoders, encoders, priors
        >>> vae = VAE(priors.Normal(2), encoders.Normal(64, 2), decoders.Normal(2, 64))
        >>> loss, traces = recording(Trace_ELBO(num_particles=3))
        >>> bound = loss.loss(vae.model, vae.guide, torch.zeros(5, 64))
        >>> len(traces)
        3
    """
    traces: list[tuple[Trace, Trace]] = []
    recorder = copy.copy(loss)

    def get_traces(*args: Any) -> Iterator[tuple[Trace, Trace]]:
        for pair in type(loss)._get_traces(recorder, *args):
            traces.append(pair)
            yield pair

    recorder._get_traces = get_traces
    return recorder, traces


def terms_of(
    loss: ELBO, traces: list[tuple[Trace, Trace]], beta: Tensor | float = 1.0, value: Tensor | float = math.nan
) -> tuple[Tensor, Tensor]:
    """Average the reconstruction and the KL of an ELBO's traces over its particles.

    Sites of the model that the ELBO sums out (``TraceEnum_ELBO``) belong to the likelihood: the reconstruction is then
    what the KL leaves of the loss. Where sites of the guide are summed out, both terms are NaN.

    Arguments:
        loss: the ELBO that drew the traces.
        traces: pairs of model trace and guide trace.
        beta: the KL weight that they carry.
        value: the loss that it made of them, of use where sites are summed out.

    Returns:
        Reconstruction and KL at weight 1, two detached scalars: nats, summed over the batch.
    """
    closed_form = isinstance(loss, TraceMeanField_ELBO)
    with torch.no_grad():
        if any(_summed_out(guide) for _, guide in traces):
            return torch.tensor(math.nan), torch.tensor(math.nan)
        kls = sum(kl(model, guide, closed_form=closed_form, beta=beta) for model, guide in traces)
        if any(_summed_out(model) for model, _ in traces):
            return value - beta * kls / loss.num_particles, kls / loss.num_particles
        reconstructions = sum(reconstruction(model) for model, _ in traces)
        return reconstructions / loss.num_particles, kls / loss.num_particles


def _summed_out(trace: Trace) -> set[str]:
    return {name for name in trace.stochastic_nodes if "_enumerate_dim" in trace.nodes[name]["infer"]}


def reconstruction(model_trace: Trace) -> Tensor:
    """Sum minus the log-probability of every observed site.

    Arguments:
        model_trace: a trace of the model.

    Returns:
        A scalar: nats, summed over the batch and any particles.
    """
    # What the ELBO has not computed already; the latent sites may stand at a mean, which their support need not hold.
    model_trace.compute_log_prob(lambda _, site: site["is_observed"])
    return -sum(model_trace.nodes[name]["log_prob_sum"] for name in model_trace.observation_nodes)


def kl(model_trace: Trace, guide_trace: Trace, *, closed_form: bool = False, beta: Tensor | float = 1.0) -> Tensor:
    r"""Sum the KL of the latent sites as it is at weight 1.

    .. math:: \log q(z|x) - \log p(z) \quad \text{or, in closed form,} \quad \mathrm{KL}(q(z|x) \,\|\, p(z))

    Arguments:
        model_trace: a trace of the model at the guide's sample.
        guide_trace: the trace of the guide.
        closed_form: take the closed form where torch or Pyro has one, as ``TraceMeanField_ELBO`` does.
        beta: the weight that the traces' latent sites carry, which is taken off again.

    Returns:
        A scalar: nats, summed over the batch and any particles.
    """
    model_trace.compute_log_prob()
    guide_trace.compute_log_prob()
    total = torch.zeros(())
    summed_out = _summed_out(model_trace)
    priors = {name: model_trace.nodes[name] for name in model_trace.stochastic_nodes if name not in summed_out}
    for name in guide_trace.stochastic_nodes:
        posterior, prior = guide_trace.nodes[name], priors.pop(name, None)
        divergence = kl_or_none(posterior["fn"], prior["fn"]) if closed_form and prior else None
        if divergence is None:
            total = total + _log_prob(posterior, beta) - (_log_prob(prior, beta) if prior else 0)
        else:
            total = total + _without_weight(divergence, posterior, beta)
    return total - sum(_log_prob(prior, beta) for prior in priors.values())


def _log_prob(site: dict[str, Any], beta: Tensor | float) -> Tensor:
    if isinstance(beta, float | int) and beta == 1:
        return site["log_prob_sum"]
    return _without_weight(site["unscaled_log_prob"], site, beta)


def _without_weight(log_prob: Tensor, site: dict[str, Any], beta: Tensor | float) -> Tensor:
    # A weight of 0 has wiped out any scale of the program's own, which is then taken for 1.
    if isinstance(beta, Tensor):
        scale: Tensor | float = torch.where(beta == 0, 1.0, site["scale"] / beta)
    else:
        scale = site["scale"] / beta if beta else 1.0
    return scale_and_mask(log_prob, scale, site["mask"]).sum()
