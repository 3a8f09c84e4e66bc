"""What the objectives of this package share: per-datum log-weights of K particles, and Pyro's ELBO interface."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial, reduce
from types import MethodType
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.distributions import Delta, Distribution
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from pyro.distributions.util import scale_and_mask, sum_rightmost
from pyro.infer import ELBO, Trace_ELBO, TraceEnum_ELBO
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor
from torch.distributions import Independent, TransformedDistribution
from torch.distributions.constraints import Constraint, real
from torch.utils.checkpoint import checkpoint

from pyro_vae.arguments import as_size
from pyro_vae.data.batch import Batch, Count, arguments, count_of, tensors_of
from pyro_vae.distributions.wrappers import ScoreFunction, family, is_masked, layers, unmasked, with_density
from pyro_vae.networks._part import kept_arguments
from pyro_vae.objectives.particles import NOISE, PARTICLES
from pyro_vae.runtime.memory import most_within, peak_of

Program = Callable[..., Any]


def copy_of(loss: Any) -> Any:
    """Return a copy of an ELBO; methods that were set on the object itself are bound to the copy."""
    new = copy.copy(loss)
    for name, value in vars(loss).items():
        if isinstance(value, MethodType) and value.__self__ is loss:
            setattr(new, name, MethodType(value.__func__, new))
    return new


class Draws(NamedTuple):
    r"""Log-probabilities of K particles for each of B data, shape (K, B), in nats.

    ``likelihood`` is :math:`\log p(x|z_k)`, ``prior`` :math:`\log p(z_k)`, ``posterior`` :math:`\log q(z_k|x)`; the
    last two are scaled by the KL weight, if there is one. ``kl`` is ``posterior`` minus ``prior`` at weight 1, without
    gradients. ``own`` is what else an objective reads from the two traces, the guide's first.
    """

    likelihood: Tensor
    prior: Tensor
    posterior: Tensor
    kl: Tensor
    own: tuple[Tensor, ...] = ()

    @property
    def log_weights(self) -> Tensor:
        r"""Importance weights :math:`\log w_k = \log p(x, z_k) - \log q(z_k|x)`, shape (K, B)."""
        return self.likelihood + self.prior - self.posterior


class Terms(NamedTuple):
    """What a training step needs from an objective, in nats, summed over the batch. Only ``loss`` has gradients."""

    loss: Tensor
    negative_bound: Tensor
    reconstruction: Tensor
    kl: Tensor


class Objective(ELBO):
    """An objective per datum, made of the log-weights of K particles that pass through the programs together.

    A subclass computes its value from `Draws` in ``estimate``. ``weighs_kl`` says whether it has a KL that
    `pyro_vae.handlers.KLWeight` may scale, and ``pathwise`` whether its gradient needs a pathwise sampler. ``needs``
    lists the properties of the noise that its gradient needs; not all handlers of `pyro_vae.noise` provide them. With
    ``one_by_one``, the model runs on one particle at a time, without a particle dimension.
    """

    one_by_one = False
    count_data: Count | None = None  # returns the number of data of a batch; None: its first dimension

    weighs_kl = False
    pathwise = True
    needs: tuple[str, ...] = ()

    def __init__(self, num_particles: int = 1, chunk: int | None = None) -> None:
        super().__init__(num_particles=as_size(num_particles, "num_particles"), max_plate_nesting=2)
        self.vectorize_particles = True
        self.chunk = num_particles if chunk is None else as_size(chunk, "chunk")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({kept_arguments(self, but='chunk')})"

    def estimate(self, draws: Draws) -> Tensor:
        """Return the value to maximize for each datum, shape (B,), with the gradient of the estimator."""
        raise NotImplementedError

    def terms(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Terms:
        """Return the loss, the negative bound, the reconstruction and the KL of a pair of programs."""
        return self.of_draws(self.draws(model, guide, *args, **kwargs))

    def of_draws(self, draws: Draws) -> Terms:
        """Return the same terms for draws that were made before."""
        loss = -self.estimate(draws).sum()
        reconstruction, kl = reported(draws)
        return Terms(loss, reconstruction + kl if self.weighs_kl else loss.detach(), reconstruction, kl)

    def draws(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Draws:
        """Run the guide on K particles, and the model on ``chunk`` of them at a time.

        If there are several chunks and gradients are needed, the backward pass runs the model on each chunk again. The
        memory is then that of one chunk, plus what the guide takes.
        """
        guide_trace = self.guide_trace(guide, *args, particles=self.num_particles, **kwargs)

        def run(count: int, *values: Tensor) -> tuple[Tensor, ...]:
            return self.of_particles(model, guide_trace, count, values, *args, **kwargs)

        chunk = 1 if self.one_by_one else self.chunk
        sizes = [min(chunk, self.num_particles - start) for start in range(0, self.num_particles, chunk)]
        if self.chunk < self.num_particles and torch.is_grad_enabled():
            run = partial(checkpoint, run, use_reentrant=False)
        values = [guide_trace.nodes[name]["value"].split(sizes) for name in guide_trace.stochastic_nodes]
        chunks = [run(*chunk) for chunk in zip(sizes, *values, strict=True)]
        whole = chunks[0] if len(chunks) == 1 else [torch.cat(parts) for parts in zip(*chunks, strict=True)]
        likelihood, prior, unweighed_prior, *models_own = whole
        posterior, *own = self.of_guide(guide_trace)
        self._check_count(likelihood.shape[-1], kwargs or (args[0] if len(args) == 1 else args))
        kl = unweighed(guide_trace) - unweighed_prior
        return Draws(likelihood, prior, posterior, kl, (*own, *models_own))

    def of_particles(
        self, model: Program, guide_trace: Trace, count: int, values: Sequence[Tensor], /, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, ...]:
        """Run the model on some particles, and return the result of `of_model`."""
        if not self.one_by_one:
            return self.of_model(
                self.model_trace(model, with_values(guide_trace, values), *args, particles=count, **kwargs)
            )
        drawn = with_values(guide_trace, [value[0] for value in values])
        return tuple(value[None] for value in self.of_model(self.model_trace(model, drawn, *args, **kwargs)))

    def of_guide(self, trace: Trace) -> tuple[Tensor, ...]:
        """Return log q of the particles, shape (K, B), and what else the objective reads from the guide's trace."""
        return (log_prob(trace, trace.stochastic_nodes),)

    def of_model(self, trace: Trace) -> tuple[Tensor, ...]:
        """Return log p(x|z), log p(z), log p(z) at KL weight 1, and what else the objective reads from the trace."""
        return (log_prob(trace, trace.observation_nodes), log_prob(trace, trace.stochastic_nodes), unweighed(trace))

    def chunk_within(self, memory: int, model: Program, guide: Program, batch: Batch) -> int:
        """Return how many particles of a batch the model may run on at a time, including their gradients.

        Arguments:
            memory: limit in bytes, including what the guide and the objective itself take for all particles.
            model: the Pyro program of p(x, z).
            guide: the Pyro program of q(z|x).
            batch: what both are called with.

        Returns:
            From 1 to ``chunk``.

        Raises:
            ValueError: if the memory is too small for one particle, or for the guide and the objective.
        """
        args, kwargs = arguments(batch)

        def of_guide(count: int) -> int:
            return peak_of(lambda: self.of_guide(self.guide_trace(guide, *args, particles=count, **kwargs)))

        def of_model(count: int) -> int:
            drawn = self.guide_trace(guide, *args, particles=count, **kwargs)
            values = [drawn.nodes[name]["value"] for name in drawn.stochastic_nodes]
            return peak_of(lambda: self.of_particles(model, drawn, count, values, *args, **kwargs))

        left = 0
        if most_within(memory, of_guide, self.num_particles) == self.num_particles:
            left = memory - of_guide(self.num_particles) - self._peak_of_estimate(model, guide, batch)
        size = most_within(left, of_model, 1 if self.one_by_one else self.chunk) if left > 0 else 0
        if not size:
            need = f"one particle of {count_of(batch)} data takes {of_model(1):,} bytes beside what takes all at a time"
            raise ValueError(f"a memory of {memory:,} bytes is too small: {need}; give more, or lower the batch size")
        return size

    def _peak_of_estimate(self, model: Program, guide: Program, batch: Batch) -> int:
        """Return how many bytes the objective itself takes for all particles, without running the model on all."""
        if type(self).terms is not Objective.terms:  # a user's method, of unknown cost
            return 0
        count, (args, kwargs) = self.num_particles, arguments(batch)
        one = self.guide_trace(guide, *args, particles=1, **kwargs)
        values = [one.nodes[name]["value"] for name in one.stochastic_nodes]
        of_one = self.of_particles(model, one, 1, values, *args, **kwargs)
        posterior, *own = self.of_guide(self.guide_trace(guide, *args, particles=count, **kwargs))

        def run() -> None:
            likelihood, prior, _, *models = (value.expand(count, *value.shape[1:]).clone() for value in of_one)
            self.of_draws(Draws(likelihood, prior, posterior, posterior - prior, (*own, *models)))

        return peak_of(run)

    def traces(self, model: Program, guide: Program, *args: Any, particles: int, **kwargs: Any) -> tuple[Trace, Trace]:
        """Run the guide and then the model on several particles, and check that the objective can use them."""
        guide_trace = self.guide_trace(guide, *args, particles=particles, **kwargs)
        return self.model_trace(model, guide_trace, *args, particles=particles, **kwargs), guide_trace

    def guide_trace(self, guide: Program, *args: Any, particles: int, **kwargs: Any) -> Trace:
        """Run the guide on several particles."""
        program = pyro.plate(PARTICLES, particles, dim=-2)(guide)
        trace = self._checked(_Draws(self)(program), *args, **kwargs)
        for name in trace.stochastic_nodes:
            self._check_draw(name, trace.nodes[name])
        for name in trace.observation_nodes:
            if not trace.nodes[name]["infer"].get("_deterministic"):
                raise ValueError(
                    f"the guide has a factor, at site {name!r}, by which its draws have no density: take Trace_ELBO, or"
                    " let the model have the opposite factor"
                )
        return trace

    def model_trace(
        self, model: Program, guide_trace: Trace, *args: Any, particles: int | None = None, **kwargs: Any
    ) -> Trace:
        """Run the model on the guide's particles; if None, on a single one, without a particle dimension."""
        program = model if particles is None else pyro.plate(PARTICLES, particles, dim=-2)(model)
        dims = 1 if particles is None else 2
        trace = self._checked(poutine.replay(program, trace=guide_trace), *args, dims=dims, **kwargs)
        self._check_same_sites(trace, guide_trace)
        return trace

    def _checked(self, program: Program, *args: Any, dims: int = 2, **kwargs: Any) -> Trace:
        try:
            trace = prune_subsample_sites(poutine.trace(_OfTheBatch()(program)).get_trace(*args, **kwargs))
        except ValueError as error:
            if f'"{PARTICLES}", collide' not in str(error):
                raise
            raise ValueError(
                f"{type(self).__name__} weighs each datum by itself, so that every site must stand in one plate, over"
                " the data, of dim -1, but one has dim -2: take Trace_ELBO for such programs"
            ) from error
        for name in [*trace.stochastic_nodes, *trace.observation_nodes]:
            if not trace.nodes[name]["infer"].get("_deterministic"):  # Pyro's mark of a value without a density
                self._check_site(name, trace.nodes[name], dims)
        return trace

    def _get_trace(self, model: Program, guide: Program, args: Any, kwargs: Any) -> tuple[Trace, Trace]:
        return self.traces(model, guide, *args, particles=self.num_particles, **kwargs)

    def differentiable_loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """Return the loss, summed over the batch, with the gradient of the estimator."""
        return self.terms(model, guide, *args, **kwargs).loss

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """Return the loss, summed over the batch."""
        with torch.no_grad():
            return self.terms(model, guide, *args, **kwargs).loss.item()

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """Add the gradients to those of the parameters, and return the loss, summed over the batch."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        loss.backward()
        return loss.item()

    def _check_site(self, name: str, site: dict[str, Any], dims: int) -> None:
        plates = [frame for frame in site["cond_indep_stack"] if frame.name != PARTICLES]
        if len(plates) != 1 or plates[0].dim != -1:
            raise ValueError(
                f"{type(self).__name__} weighs each datum by itself, so that every site must stand in one plate, over"
                f" the data, of dim -1; site {name!r} stands in {len(plates)}: take Trace_ELBO for such programs"
            )
        check_dims(name, site, dims)
        if not self.weighs_kl and not unscaled(site):
            weighed, scale = "unweighed_scale" in site, in_a_line(site["scale"])
            fix = "leave beta at 1, or take Trace_ELBO" if weighed else "leave poutine.scale out of the programs"
            raise ValueError(
                f"{type(self).__name__} has no KL to weigh: a scale of {scale} at site {name!r} would change the bound"
                f" without a word; {fix}"
            )

    def _check_count(self, count: int, batch: Batch) -> None:
        """Refuse programs that take only a part of the batch: the sum over that part is not the sum over the batch."""
        if self.count_data:
            size = self.count_data(batch)
        else:
            size = next((len(tensor) for tensor in tensors_of(batch)[:1] if tensor.dim()), count)
        if count != size:
            raise ValueError(
                f"{type(self).__name__} weighs each datum of a batch, but the programs take {count} of {size}: let"
                " them take all (pyro.plate('data', N, subsample_size=len(x)), by batches of fit's batch_size)"
            )

    def _check_same_sites(self, model_trace: Trace, guide_trace: Trace) -> None:
        """Refuse sites that only one program draws: a ratio of densities of different variables is not a weight."""
        sites = guide_trace.nodes
        drawn = {name for name in guide_trace.stochastic_nodes if not sites[name]["infer"].get("is_auxiliary")}
        if alone := drawn.symmetric_difference(model_trace.stochastic_nodes):
            summed_out = any(model_trace.nodes[name]["infer"].get("enumerate") for name in alone & {*model_trace.nodes})
            fix = "evaluate by TraceEnum_ELBO, which sums it out" if summed_out else "give both one name"
            raise ValueError(
                f"{type(self).__name__} needs a model and a guide that draw the same sites, but only one of them draws"
                f" {', '.join(sorted(alone))}: {fix}, or leave it out of both"
            )

    def _check_draw(self, name: str, site: dict[str, Any]) -> None:
        """Refuse a site of the guide whose draw this objective cannot use as it is."""
        kind = type(self).__name__
        if self.pathwise and not site["fn"].has_rsample:
            raise ValueError(
                f"{kind} needs a pathwise sampler, which {family(site['fn'])} at site {name!r} has not: take VIMCO,"
                " Thermodynamic, or Trace_ELBO, which fall back on the score function"
            )
        if self.pathwise and torch.is_grad_enabled():
            check_rejections(self, site)
        handler, lacking = site["infer"].get(NOISE, ("", ""))
        if lacking in self.needs:
            raise ValueError(
                f"the gradient of {kind} needs {lacking}, which noise.{handler} at site {name!r} does not give: take"
                " IWAE or Trace_ELBO, or leave the handler out"
            )


class _OfTheBatch(Messenger):
    """Remove the scale of a plate that takes only a part of its data, as only the data of the batch are weighed."""

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        for frame in msg["cond_indep_stack"]:
            for name in {"scale", "unweighed_scale"} & msg.keys() if frame.full_size != frame.size else ():
                scale = msg[name] / (frame.full_size / frame.size)
                msg[name] = 1.0 if isinstance(scale, float) and math.isclose(scale, 1) else scale


class _Draws(Messenger):
    """Draw the guide's sites as an objective needs them: with a pathwise gradient, or without any gradient."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.pathwise, self.kind = objective.pathwise, type(objective).__name__

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if msg["is_observed"] or msg["done"]:
            return
        value = msg["fn"](*msg["args"], **msg["kwargs"]) if msg["value"] is None else msg["value"]
        if hasattr(value, "_unquantize"):  # Pyro's mark of a draw that is rounded, but scored unrounded
            raise ValueError(
                f"{self.kind} scores the values that are drawn, and {family(msg['fn'])} at site {msg['name']!r} scores"
                " others: take encoders.RelaxedOneHotCategorical(straight_through=True), or Trace_ELBO"
            )
        if not self.pathwise:
            if value.requires_grad and any(isinstance(layer, Delta) for layer in layers(msg["fn"])):
                raise ValueError(
                    f"{self.kind} trains a guide by its density, which a Delta at site {msg['name']!r} has not: take"
                    " IWAE or Trace_ELBO"
                )
            value = without_path(value)
        msg["value"], msg["done"] = value, True


def without_path(value: Tensor) -> Tensor:
    """Return a value without a gradient.

    Where gradients are computed, it is another tensor: a transform may have cached the inverse of this one as a
    constant, although the inverse depends on parameters. Elsewhere the cache saves computing it.
    """
    return value.detach() if torch.is_grad_enabled() else value


def with_values(guide_trace: Trace, values: Sequence[Tensor]) -> Trace:
    """Return a guide's trace with other values at its latent sites, on which a model can be replayed."""
    trace = guide_trace.copy()
    for name, value in zip(guide_trace.stochastic_nodes, values, strict=True):
        trace.nodes[name] = trace.nodes[name] | {"value": value}
    return trace


def reported(draws: Draws) -> tuple[Tensor, Tensor]:
    """Return reconstruction and KL as they are reported: means over the particles, sums over the batch."""
    return -draws.likelihood.detach().mean(0).sum(), draws.kl.mean(0).sum()


def log_prob(trace: Trace, names: list[str]) -> Tensor:
    """Sum the log-probabilities of some sites of a trace, shape (K, B)."""
    for name in names:
        with with_density(f"at site {name!r}", trace.nodes[name]["fn"]):
            trace.compute_log_prob(lambda at, _, name=name: at == name)
    return sum((trace.nodes[name]["log_prob"] for name in names), torch.zeros(()))


def whole_score(objective: Objective, trace: Trace) -> Tensor:
    """Sum the log-probabilities of a guide's sites, computed before, without their masks, shape (K, B).

    Its gradient is the score of the draws. A mask takes a density out of the bound, but other sites may still depend on
    the draw, so that it belongs into the score.

    Raises:
        ValueError: for a site whose support moves.
    """
    sites = [trace.nodes[name] for name in trace.stochastic_nodes]
    for site in sites:
        check_score(objective, site, "take IWAE or Trace_ELBO")
    each = [
        unmasked(site["fn"]).log_prob(site["value"]) if is_masked(site["fn"]) else site["unscaled_log_prob"]
        for site in sites
    ]
    return sum(each, torch.zeros(()))


def check_dims(name: str, site: dict[str, Any], most: float) -> None:
    """Refuse a site with more dimensions than the plates of data and particles: it would be counted several times.

    Arguments:
        name: name of the site.
        site: the site, as a trace holds it.
        most: number of dimensions of the plates, including that of the particles.

    Raises:
        ValueError: for such a site; the message has its shape and the fix.
    """
    fn, value = site["fn"], torch.as_tensor(site["value"])
    of_value = value.shape[: value.dim() - fn.event_dim]
    shape = tuple(of_value if len(of_value) > len(fn.batch_shape) else fn.batch_shape)
    if len(shape) > most:
        raise ValueError(
            f"site {name!r} has shape {shape} where particles run side by side, more than its plates: let the programs"
            " count dimensions from the right (z.unsqueeze(-2) @ w), or take Trace_ELBO(num_particles)"
        )


def unscaled(site: dict[str, Any]) -> bool:
    """Whether a site has no scale, neither a weight nor that of a plate that takes a part of its data."""
    return isinstance(site["scale"], float | int) and site["scale"] == 1


def in_a_line(scale: Tensor | float) -> str:
    return f"shape {tuple(scale.shape)}" if isinstance(scale, Tensor) and scale.dim() else f"{float(scale):g}"


def unweighed(trace: Trace) -> Tensor:
    """Sum the log-probabilities of a trace's latent sites at KL weight 1 and without a gradient, shape (K, B)."""
    trace.compute_log_prob(lambda name, _: name in trace.stochastic_nodes)  # if not done yet
    sites = [trace.nodes[name] for name in trace.stochastic_nodes]
    return sum((at_weight_1(site["unscaled_log_prob"], site) for site in sites), torch.zeros(())).detach()


def at_weight_1(value: Tensor, site: dict[str, Any]) -> Tensor:
    """Scale and mask log-probabilities as a program does, without a `pyro_vae.handlers.KLWeight`."""
    return scale_and_mask(value, scale_at_1(site), site["mask"])


def scale_at_1(site: dict[str, Any]) -> Tensor | float:
    """Return the scale that a site has without a `pyro_vae.handlers.KLWeight`."""
    scale: Tensor | float = site.get("unweighed_scale", site["scale"])
    return scale


def the_latent_site(objective: Objective, guide_trace: Trace) -> dict[str, Any]:
    """Return the guide's latent site, or refuse a guide that has several."""
    names = guide_trace.stochastic_nodes
    if len(names) != 1:
        raise ValueError(
            f"{type(objective).__name__} takes a guide of one latent site, not of {len(names)}: {names};"
            " take IWAE or Trace_ELBO"
        )
    return guide_trace.nodes[names[0]]


def path_only(objective: Objective, site: dict[str, Any]) -> Tensor:
    """Return log q(z) with a gradient through z only. The score, its gradient in the parameters of q, is left out.

    A point has no density, and its log q has no gradient.
    """
    distribution, value = site["fn"], site["value"]
    log_q: Tensor
    if _support(site["fn"]).is_discrete:  # rounded codes have the gradient of other, unrounded ones
        raise _without_slope(objective, site)
    if not (torch.is_grad_enabled() and value.requires_grad):
        return masked(distribution.log_prob(value), site)
    leaf = value.detach().requires_grad_()
    with with_density(f"at site {site['name']!r}", distribution):
        log_q = distribution.log_prob(leaf)
    if not log_q.requires_grad:
        return masked(log_q, site)
    (slope,) = torch.autograd.grad(log_q.sum(), leaf, retain_graph=True, allow_unused=True)
    if slope is None:
        raise _without_slope(objective, site)
    along = sum_rightmost((value - value.detach()) * slope, distribution.event_dim)
    return masked(log_q.detach() + along, site)


def _without_slope(objective: Objective, site: dict[str, Any]) -> ValueError:
    return ValueError(
        f"{type(objective).__name__} needs a density that can be differentiated in z, which {family(site['fn'])} at"
        f" site {site['name']!r} has not: take IWAE or Trace_ELBO"
    )


def check_support(objective: Objective, site: dict[str, Any]) -> None:
    """Refuse a site whose support moves with parameters: the mean of its score is then not 0."""
    if _moves(site["fn"]):
        raise ValueError(
            f"{type(objective).__name__} leaves out the score, whose mean is 0 on a fixed support alone, and that of"
            f" {family(site['fn'])} at site {site['name']!r} moves: take IWAE or Trace_ELBO"
        )


def check_score(loss: ELBO, site: dict[str, Any], fix: str) -> None:
    """Refuse the score function at a site whose support moves with parameters: it does not see the bounds move."""
    if _moves(site["fn"]):
        raise ValueError(
            f"{type(loss).__name__} takes the score function at site {site['name']!r}, which is right on a fixed"
            f" support alone, and that of {family(site['fn'])} moves with parameters: {fix}"
        )


def check_rejections(loss: ELBO, site: dict[str, Any]) -> None:
    """Refuse pathwise draws that need a score beside their own gradient, as those by rejection, where it is left out.

    Of Pyro's ELBOs, ``Trace_ELBO`` and ``TraceEnum_ELBO`` take it, but not through ``to_event`` or a transform.
    """
    wrapped = list(layers(site["fn"]))
    usual = [getattr(kind, "score_parts", None) for kind in (Distribution, ExpandedDistribution, MaskedDistribution)]
    own = [getattr(type(layer), "score_parts", None) not in [None, *usual] for layer in wrapped]
    if not any(own):
        return
    outside = wrapped[: own.index(True)]
    taken = isinstance(loss, Trace_ELBO | TraceEnum_ELBO)
    if not (taken and all(isinstance(layer, ExpandedDistribution) for layer in outside)):
        raise ValueError(
            f"{type(loss).__name__} leaves out the score that the draws of {family(wrapped[own.index(True)])} at site"
            f" {site['name']!r} need beside their own gradient: wrap the distribution of the site in"
            " pyro_vae.distributions.ScoreFunction, for VIMCO or Trace_ELBO"
        )


def _moves(distribution: Any) -> bool:
    """Whether parameters move the bounds of a support; after transforms, torch takes these bounds to be fixed."""
    wrapped = Independent | ExpandedDistribution | MaskedDistribution | ScoreFunction
    inner = next(layer for layer in layers(distribution) if not isinstance(layer, wrapped))
    if type(inner).support is not TransformedDistribution.support:
        return any(end.requires_grad for end in _bounds(_support(inner)))
    by_number = not any(transform.domain.event_dim for transform in inner.transforms)
    tensors = [value for transform in inner.transforms for value in vars(transform).values()]
    moving = [value for value in tensors if isinstance(value, Tensor) and value.requires_grad]
    for end in _bounds(_support(inner.base_dist)) if moving and by_number else ():
        image = reduce(lambda value, transform: transform(value), inner.transforms, end)
        slopes = torch.autograd.grad(image.sum(), moving, allow_unused=True)
        if any(slope is not None and slope.any() for slope in slopes):
            return True
    return _moves(inner.base_dist)


def _support(distribution: Any) -> Constraint:
    try:
        return distribution.support
    except NotImplementedError:  # flows of zuko do not define a support
        return real


def _bounds(constraint: Any) -> Iterator[Tensor]:
    """Yield the bounds of a constraint, and those of the constraints that it is composed of."""
    for name, value in vars(constraint).items():
        if isinstance(value, Tensor) or name.endswith("_bound"):
            yield torch.as_tensor(value)
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, Constraint):
                yield from _bounds(part)


def masked(log_prob: Tensor, site: dict[str, Any]) -> Tensor:
    """Return log-probabilities of a site, with 0 for those that the program masks."""
    return scale_and_mask(log_prob, 1.0, site["mask"])
