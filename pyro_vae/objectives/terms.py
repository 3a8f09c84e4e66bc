"""What training adds to an ELBO: a KL weight, schedules for it, and the two terms of the bound."""

import math
from collections.abc import Callable, Collection, Iterator
from functools import partial, wraps
from typing import Any

import torch
from pyro import poutine
from pyro.infer import (
    ELBO,
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_MMD,
    TraceEnum_ELBO,
    TraceMeanField_ELBO,
    TraceTailAdaptive_ELBO,
    TraceTMC_ELBO,
)
from pyro.infer.traceenum_elbo import _compute_dice_elbo
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_vae.arguments import as_number, as_size
from pyro_vae.data.batch import Batch, arguments, count_of
from pyro_vae.distributions.kl import kl_or_none
from pyro_vae.distributions.wrappers import ScoreFunction, is_masked, is_transformed
from pyro_vae.objectives._objective import (
    Objective,
    Program,
    Terms,
    at_weight_1,
    check_dims,
    check_rejections,
    check_score,
    copy_of,
    scale_at_1,
)
from pyro_vae.objectives.plates import share_of

Beta = float | Callable[[int], float]
SUMS_OF_WEIGHTS = {RenyiELBO: "objectives.Renyi, or IWAE", TraceTMC_ELBO: "TraceEnum_ELBO, or a plate of len(x)"}
_MARKS = {"_enumerate_dim", "_enum_total"}  # Pyro's marks of parallel and sequential enumeration
OF_A_BATCH = {Trace_MMD: "InfoVAE(alpha=1.0)", ReweightedWakeSleep: "VIMCO(5)", TraceTailAdaptive_ELBO: "Renyi(0.5)"}


def linear_warm_up(steps: int, beta: float = 1.0) -> Callable[[int], float]:
    r"""Return a schedule for the KL weight that rises linearly from 0 and then stays constant.

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
        TypeError: if it is not a number.
        ValueError: for a negative or infinite weight.

    Example:
        >>> check_beta(0.5)
        0.5
    """
    if not 0 <= as_number(beta, "the KL weight beta") < math.inf:
        raise ValueError(f"the KL weight beta must be at least 0 and finite, not {beta!r}")
    return beta


def check_per_datum(loss: ELBO) -> None:
    """Refuse an ELBO of Pyro that treats a batch as one datum, or that has no particles, and name the fix.

    Raises:
        TypeError: for ``Trace_MMD``, ``ReweightedWakeSleep`` and ``TraceTailAdaptive_ELBO``.
        ValueError: for a number of particles below 1.

    Example:
        >>> from pyro.infer import Trace_ELBO
        >>> check_per_datum(Trace_ELBO())
    """
    for kind, instead in OF_A_BATCH.items():
        if isinstance(loss, kind):
            raise TypeError(
                f"{kind.__name__} takes the data of a batch for one datum, so that the objective would depend on the"
                f" batch size: take objectives.{instead}"
            )
    as_size(getattr(loss, "num_particles", 1), "num_particles")


def terms_and_gradients(loss: ELBO, plates: Collection[str] = ()) -> Callable[..., tuple[Terms, list[Tensor | None]]]:
    """Return a function that computes an objective's terms and gradients.

    Arguments:
        loss: an objective of this package, or an ELBO of Pyro, even one that has only ``loss_and_grads``, such as
            ``TraceGraph_ELBO``.
        plates: names of the programs' plates over the data (see `share_of`).

    Returns:
        A function of the model, the guide, a batch, the KL weight that the programs apply, a function that returns the
        parameters met, the number of data, and a function that is called with the loss, or with the log-probabilities
        of all sites if the ELBO has only ``loss_and_grads``. It returns the terms, summed over the batch, and the
        gradients of the mean loss per datum.

    Example:
        >>> from pyro.infer import Trace_ELBO
        >>> from pyro_vae import VAE, decoders, encoders, priors
        >>> vae = VAE(priors.Normal(2), encoders.Normal(64, 2), decoders.Normal(2, 64))
        >>> compute = terms_and_gradients(Trace_ELBO())
        >>> terms, gradients = compute(vae.model, vae.guide, torch.zeros(5, 64), 1.0, lambda: list(vae.parameters()))
        >>> len(gradients) == len(list(vae.parameters()))
        True
    """
    by_hand = trained_by(loss) == "loss_and_grads"
    recorder, traces = recording(loss)

    def compute(
        model: Program,
        guide: Program,
        batch: Batch,
        beta: Tensor | float,
        parameters: Callable[[], list[Tensor]],
        count: int | None = None,
        look: Callable[..., None] = lambda *_: None,
    ) -> tuple[Terms, list[Tensor | None]]:
        args, kwargs = arguments(batch)
        count = count_of(batch) if count is None else count
        if isinstance(loss, Objective) and not by_hand:
            terms = loss.terms(model, guide, *args, **kwargs)
            look(terms.loss)
            return _with_gradients(terms, count, parameters())
        if not by_hand:
            value = torch.as_tensor(_weighed(recorder.differentiable_loss, model, guide, *args, **kwargs))
            look(value)
            _check_scores(loss, traces)
            share = share_of(traces, count, plates)
            return _with_gradients(_terms(recorder, traces, beta, value, share), count, parameters())
        for parameter in parameters():
            parameter.grad = None
        value = _as_loss(recorder.loss_and_grads(_with_owner(model), _with_owner(guide), *args, **kwargs), loss)
        sites = [site for pair in traces for trace in pair for site in trace.nodes.values()]
        look(*(site["log_prob"] for site in sites if "log_prob" in site))
        _check_scores(loss, traces)
        share = share_of(traces, count, plates)
        gradients = [None if p.grad is None else p.grad * (share / count) for p in parameters()]
        return _terms(recorder, traces, beta, value, share), gradients

    @wraps(compute)
    def cleared(*args: Any) -> tuple[Terms, list[Tensor | None]]:
        try:
            return compute(*args)
        finally:
            traces.clear()  # also if the programs fail halfway

    return cleared


def with_plates(
    loss: ELBO, model: Program, guide: Program, rows: Batch, transform: Callable[[Batch], Batch] | None = None
) -> ELBO:
    """Return a copy of an ELBO with its ``max_plate_nesting`` guessed, if it would guess it at its first call.

    To guess, the ELBO runs the programs once, which draws noise; a resumed training would draw noise once more.

    Arguments:
        loss: an ELBO of Pyro.
        model: the Pyro program of p(x, z).
        guide: the Pyro program of q(z|x).
        rows: some data.
        transform: what is applied to the data before both programs see them.

    Returns:
        The copy, or the ELBO itself if there is nothing to guess.
    """
    guesses = loss.vectorize_particles or isinstance(loss, TraceEnum_ELBO | TraceTMC_ELBO)
    if loss.max_plate_nesting != math.inf or not guesses:
        return loss
    loss = copy_of(loss)
    loss._guess_max_plate_nesting(model, guide, *arguments(transform(rows) if transform else rows))
    return loss


def trained_by(loss: ELBO) -> str:
    """Return which method of an ELBO gives its gradient; a method that a user's class overrides takes precedence.

    Arguments:
        loss: an ELBO of Pyro, an objective of this package, or an instance of a class derived from either.

    Returns:
        "differentiable_loss", which for an `Objective` stands for its terms, or "loss_and_grads".

    Raises:
        TypeError: if a class overrides only the value, so that training would ignore the override.

    Example:
        >>> from pyro.infer import Trace_ELBO
        >>> trained_by(Trace_ELBO())
        'differentiable_loss'
    """
    if is_theirs(loss, "loss_and_grads"):
        return "loss_and_grads"
    seen = () if isinstance(loss, Objective) else ("differentiable_loss", "_differentiable_loss_particle")
    if not any(is_theirs(loss, name) for name in seen):
        for name in ("differentiable_loss", "loss", "loss_and_surrogate_loss"):
            if is_theirs(loss, name):
                fix = "terms or loss_and_grads" if isinstance(loss, Objective) else "loss_and_grads"
                raise TypeError(f"{type(loss).__name__} overrides {name}, which training does not call: override {fix}")
    return "differentiable_loss" if hasattr(loss, "differentiable_loss") else "loss_and_grads"


def is_theirs(loss: ELBO, name: str) -> bool:
    """Whether a method of an ELBO is defined by a user, rather than by Pyro or this package.

    Arguments:
        loss: the ELBO.
        name: the method's name.

    Example:
        >>> from pyro.infer import Trace_ELBO
        >>> is_theirs(Trace_ELBO(), "loss")
        False
    """
    if name in vars(loss):
        return True
    owner = next((cls for cls in type(loss).__mro__ if name in vars(cls)), None)
    return owner is not None and owner.__module__.partition(".")[0] not in ("pyro", "pyro_vae")


def _as_loss(value: Any, loss: ELBO) -> Tensor:
    if isinstance(value, float | int) or (isinstance(value, Tensor) and value.numel() == 1):
        return torch.as_tensor(value).reshape(())
    kind = type(value).__name__
    raise TypeError(f"loss_and_grads of {type(loss).__name__} must return one number, the loss, not a {kind}")


def _with_owner(program: Program) -> Program:
    """Give the wrapper of a method the object that owns the method: a user's ELBO may read ``model.__self__``."""
    owner = getattr(poutine.unwrap(program), "__self__", None)
    if owner is not None and isinstance(program, partial):
        program.__self__ = owner  # type: ignore[attr-defined]
    return program


def _weighed(loss: Callable[..., Tensor], /, *args: Any, **kwargs: Any) -> Tensor:
    try:
        return loss(*args, **kwargs)
    except ValueError as error:
        if "common poutine.scale" not in str(error):
            raise
        raise ValueError(
            "a site that the model sums out stands in the likelihood, so that the KL has no weight of its own: leave"
            " beta at 1, or sum the site out by hand (dist.MixtureSameFamily)"
        ) from error


def _check_scores(loss: ELBO, traces: list[tuple[Trace, Trace]]) -> None:
    """Refuse draws whose score the loss takes where it is not right, or leaves out where it is needed."""
    for _, guide_trace in traces:
        for site in (guide_trace.nodes[name] for name in guide_trace.stochastic_nodes):
            if site["fn"].has_rsample:
                check_rejections(loss, site)
            else:
                check_score(loss, site, "let its draws have a gradient (has_rsample), or keep the support fixed")


def _terms(loss: ELBO, traces: list[tuple[Trace, Trace]], beta: Tensor | float, value: Tensor, share: float) -> Terms:
    several = any(_summed_out(trace) for pair in traces for trace in pair)  # in sequence: a pair of traces per value
    if not several and len(traces) != (1 if loss.vectorize_particles else loss.num_particles):
        traces.clear()  # a user's ELBO made traces of its own
        unknown = torch.full_like(value.detach(), math.nan)
        is_at_1 = isinstance(beta, float | int) and beta == 1
        value = value * share
        return Terms(value, value.detach() if is_at_1 else unknown, unknown, unknown)
    terms = terms_of(loss, traces, beta, value.detach())
    traces.clear()
    reconstruction, kl = (term * share for term in terms) if share != 1 else terms
    value = value.to(kl.dtype) * share  # in a recording it has double precision up to here
    at_1 = value.detach() if isinstance(beta, float | int) and beta == 1 else value.detach() + (1 - beta) * kl
    return Terms(value, at_1, reconstruction, kl)


def _with_gradients(terms: Terms, count: int, parameters: list[Tensor]) -> tuple[Terms, list[Tensor | None]]:
    """Return the terms, and gradients that share no memory, because clipping writes into each of them.

    A parameter has no gradient if it was frozen during training, by ``requires_grad_(False)``, or if the batch does not
    reach it, as a classifier's parameters without labels.
    """
    seen: set[int] = set()
    gradients: list[Tensor | None] = []
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if not (trained and torch.is_grad_enabled()):
        fix = "leave requires_grad of some of them True" if torch.is_grad_enabled() else "train outside torch.no_grad()"
        raise ValueError(f"the loss depends on no parameter that is trained: {fix}")
    reached = terms.loss.requires_grad
    found = iter(
        torch.autograd.grad(terms.loss / count, trained, allow_unused=True) if reached else [None] * len(trained)
    )
    for gradient in (next(found) if parameter.requires_grad else None for parameter in parameters):
        if gradient is not None:
            gradient = gradient.to_dense() if gradient.is_sparse else gradient  # as from Embedding(sparse=True)
            gradient = gradient.clone() if gradient.data_ptr() in seen else gradient.contiguous()
            seen.add(gradient.data_ptr())
        gradients.append(gradient)
    return Terms(*(term.detach() for term in terms)), gradients


def recording(loss: ELBO) -> tuple[ELBO, list[tuple[Trace, Trace]]]:
    """Return a copy of an ELBO that keeps the pairs of traces it makes, and the list it keeps them in.

    Every ELBO of Pyro 1.9 gets its traces, with their log-probabilities computed, from ``_get_traces``. Reading the
    terms from them costs nothing, unlike running the programs a second time.

    Arguments:
        loss: an ELBO of Pyro, or one that draws its traces in the same way.

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
    recorder = copy_of(loss)

    def get_traces(model: Program, guide: Program, *args: Any) -> Iterator[tuple[Trace, Trace]]:
        for pair in type(loss)._get_traces(recorder, model, _WholeScore()(guide), *args):
            _check_counts(loss, *pair)
            if recorder.max_plate_nesting < math.inf and not isinstance(loss, TraceEnum_ELBO | TraceTMC_ELBO):
                for name, site in [each for trace in pair for each in trace.nodes.items()]:
                    # Pyro sums over dimensions beyond those of the plates; values without a density may have any.
                    if site["type"] == "sample" and not site["infer"].get("_deterministic"):
                        check_dims(name, site, recorder.max_plate_nesting)
            traces.append(pair)
            yield pair

    recorder._get_traces = get_traces
    return recorder, traces


class _WholeScore(Messenger):
    """Let the score of a guide's draws include what masks of their distributions hide: sites may depend on it.

    Nor may it miss the gradient of a transform's inverse, where the transform remembers it as a constant.
    """

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        fn = msg["fn"]
        if not (msg["is_observed"] or fn.has_rsample) and (is_masked(fn) or is_transformed(fn)):
            msg["fn"] = ScoreFunction(msg["fn"])


def _check_counts(loss: ELBO, model_trace: Trace, guide_trace: Trace) -> None:
    """Refuse sites that an ELBO of Pyro counts otherwise than the programs do."""
    kind = type(loss).__name__
    scales = [site["scale"] for trace in (model_trace, guide_trace) for site in trace.nodes.values() if "scale" in site]
    for cls, instead in SUMS_OF_WEIGHTS.items():
        if isinstance(loss, cls) and not all(isinstance(scale, float | int) and scale == 1 for scale in scales):
            raise ValueError(
                f"{kind} has another bound where a plate or a site is scaled, as by a power of its weights: take"
                f" {instead}"
            )
    for name in model_trace.stochastic_nodes:
        site, drawn = model_trace.nodes[name], guide_trace.nodes.get(name)
        if isinstance(loss, TraceMeanField_ELBO) and drawn and not _weighed_alike(site, drawn):
            raise ValueError(
                f"{kind} would scale and mask the KL of site {name!r} as the guide does, but the model does otherwise:"
                " put the same poutine.scale and poutine.mask around both, or take Trace_ELBO"
            )
        if isinstance(loss, TraceTMC_ELBO) and not drawn and not site["infer"].get("num_samples"):
            raise ValueError(
                f"{kind} would count the prior of site {name!r}, which the model sums out, twice: take TraceEnum_ELBO"
            )


def _weighed_alike(site: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether a site has the same scale and mask in both programs; masks that are tensors have been compared before."""
    masks = [(each["mask"] is False, isinstance(each["mask"], Tensor)) for each in (site, other)]
    return masks[0] == masks[1] and bool(torch.as_tensor(scale_at_1(site) == scale_at_1(other)).all())


def terms_of(
    loss: ELBO, traces: list[tuple[Trace, Trace]], beta: Tensor | float = 1.0, value: Tensor | float = math.nan
) -> tuple[Tensor, Tensor]:
    """Average the reconstruction and the KL of an ELBO's traces over its particles.

    If sites are summed out (``TraceEnum_ELBO``), the KL is that of the remaining sites, whose density under the model
    has the others summed out, and the reconstruction is the rest of the loss.

    Arguments:
        loss: the ELBO that drew the traces.
        traces: pairs of model trace and guide trace.
        beta: the KL weight in these traces.
        value: the loss that the ELBO computed from them, which is needed if sites are summed out.

    Returns:
        Reconstruction and KL at weight 1, two detached scalars: nats, summed over the batch; NaN if an ELBO other
        than ``TraceEnum_ELBO`` sums sites out.
    """
    closed_form = isinstance(loss, TraceMeanField_ELBO)
    with torch.no_grad():
        if any(_summed_out(trace) for pair in traces for trace in pair):
            kls = sum(_kl_summed_out(loss, *pair) for pair in traces)
            return value - beta * kls / loss.num_particles, kls / loss.num_particles
        kls = sum(kl(model, guide, closed_form=closed_form) for model, guide in traces)
        reconstructions = sum(reconstruction(*pair) for pair in traces)
        return reconstructions / loss.num_particles, kls / loss.num_particles


def _summed_out(trace: Trace) -> bool:
    return any(_MARKS & trace.nodes[name]["infer"].keys() for name in trace.stochastic_nodes)


def _kl_summed_out(loss: ELBO, model_trace: Trace, guide_trace: Trace) -> Tensor:
    """Return the KL of the latent sites: minus the bound that Pyro, summing sites out, has for these sites alone."""
    if not isinstance(loss, TraceEnum_ELBO):
        return torch.tensor(math.nan)
    guide = _latent_at_1(guide_trace, guide_trace.plate_to_symbol)
    return -torch.as_tensor(_compute_dice_elbo(_latent_at_1(model_trace, guide.plate_to_symbol), guide))


def _latent_at_1(trace: Trace, plate_to_symbol: dict[str, str]) -> Trace:
    """Return the latent sites of a trace at KL weight 1, packed as ``TraceEnum_ELBO`` packs them."""
    latent = Trace()
    computed = ("log_prob", "log_prob_sum", "unscaled_log_prob", "score_parts", "packed")
    for name in trace.stochastic_nodes:
        site = {key: value for key, value in trace.nodes[name].items() if key not in computed}
        latent.add_node(name, **site | {"scale": scale_at_1(site)})
    latent.compute_score_parts()
    latent.pack_tensors(plate_to_symbol)
    return latent


def reconstruction(model_trace: Trace, guide_trace: Trace | None = None) -> Tensor:
    """Return minus the log-probability of all observed sites, plus the factors of the guide.

    Arguments:
        model_trace: a trace of the model.
        guide_trace: the trace of the guide, if it has factors.

    Returns:
        A scalar: nats, summed over the batch and any particles.
    """
    return (_observed(guide_trace) if guide_trace else 0) - _observed(model_trace)


def _observed(trace: Trace) -> Tensor:
    # Only the observed sites: the latent ones may be at a mean, which need not lie in their support.
    trace.compute_log_prob(lambda _, site: site["is_observed"])
    return sum((trace.nodes[name]["log_prob_sum"] for name in trace.observation_nodes), torch.zeros(()))


def kl(model_trace: Trace, guide_trace: Trace, *, closed_form: bool = False) -> Tensor:
    r"""Return the KL of the latent sites at weight 1, summed over the sites.

    .. math:: \log q(z|x) - \log p(z) \quad \text{or, in closed form,} \quad \mathrm{KL}(q(z|x) \,\|\, p(z))

    Arguments:
        model_trace: a trace of the model at the guide's sample.
        guide_trace: the trace of the guide.
        closed_form: use the closed form if torch or Pyro has one, as ``TraceMeanField_ELBO`` does.

    Returns:
        A scalar: nats, summed over the batch and any particles.
    """
    model_trace.compute_log_prob()
    guide_trace.compute_log_prob()
    total = torch.zeros(())
    priors = {name: model_trace.nodes[name] for name in model_trace.stochastic_nodes}
    for name in guide_trace.stochastic_nodes:
        posterior, prior = guide_trace.nodes[name], priors.pop(name, None)
        as_one = closed_form and prior and _weighed_alike(prior, posterior)
        divergence = kl_or_none(posterior["fn"], prior["fn"]) if as_one else None
        if divergence is None:
            total = total + _log_prob_at_1(posterior) - (_log_prob_at_1(prior) if prior else 0)
        else:
            total = total + at_weight_1(divergence, posterior).sum()
    for name, prior in priors.items():
        if prior["infer"].get("enumerate"):
            raise ValueError(
                f"the model has site {name!r} summed out, and this loss sums nothing: take TraceEnum_ELBO()"
            )
    return total - sum(_log_prob_at_1(prior) for prior in priors.values())


def _log_prob_at_1(site: dict[str, Any]) -> Tensor:
    unscaled = "unweighed_scale" in site
    return at_weight_1(site["unscaled_log_prob"], site).sum() if unscaled else site["log_prob_sum"]
