"""Pairs of Pyro programs from outside: whose modules they run, where, in which mode, and whether they fit the data."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from numbers import Integral
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from pyro_vae.data import EightBit, MemoryMapped, Rows, Stream, as_stored
from pyro_vae.distributions.relaxed import KeptLogarithms
from pyro_vae.handlers import LocalModules, Program
from pyro_vae.networks import as_function
from pyro_vae.vae import VAE

Transform = Callable[[Tensor], Tensor]
FINITE = "remove or fill what is not finite"
_TURN = threading.RLock()
LARGEST_CHUNK = 2**20  # numbers that are checked together


def paired_traces(model: Program, guide: Program, *args: Any) -> tuple[Trace, Trace]:
    """Run the guide, then the model at the guide's sample.

    Arguments:
        model: the Pyro program of p(x, z).
        guide: the Pyro program of q(z|x).
        args: what both are called with.

    Returns:
        The traces of model and guide, without their plates' own sites.

    Example:
        >>> from pyro_vae import VAE, decoders, encoders, priors
        >>> vae = VAE(priors.Normal(2), encoders.Normal(64, 2), decoders.Normal(2, 64))
        >>> model_trace, guide_trace = paired_traces(vae.model, vae.guide, torch.zeros(5, 64))
        >>> model_trace.stochastic_nodes, model_trace.observation_nodes
        (['z'], ['x'])
    """
    guide_trace = poutine.trace(guide).get_trace(*args)
    model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args)
    return prune_subsample_sites(model_trace), prune_subsample_sites(guide_trace)


def modules_of(*programs: Program) -> list[nn.Module]:
    """Return the modules that programs are, or are methods of: a ``VAE`` for its own, none for plain functions."""
    functions = [poutine.unwrap(program) for program in programs]
    owners = [getattr(function, "__self__", function) for function in functions]
    return list(dict.fromkeys(owner for owner in owners if isinstance(owner, nn.Module)))


def as_input(data: Any, *programs: Program) -> Rows:
    """Return data as one tensor, on the device and in the precision of the programs' modules, or what stands for it.

    Arguments:
        data: what `pyro_vae.data.as_tensor` takes; an `EightBit`, a `MemoryMapped` or an
            ``IterableDataset``, read a batch at a time.
        programs: methods of modules, or modules; plain functions leave the data as they are.

    Returns:
        A floating-point tensor whose first dimension counts the data, or what reads such rows.

    Example:
        >>> as_input(torch.zeros(3, 2), nn.Linear(2, 2).double()).dtype
        torch.float64
    """
    x: Rows = Stream(data) if isinstance(data, IterableDataset) else data
    if not isinstance(x, EightBit | MemoryMapped | Stream):
        x = as_stored(x)
        x = EightBit(x, scale=1) if x.dtype == torch.uint8 else x
    parameters = [parameter for module in modules_of(*programs) for parameter in module.parameters()]
    return x.to(parameters[0].device, parameters[0].dtype) if parameters else x


@contextmanager
def mode(training: bool, *programs: Program) -> Iterator[None]:
    """Put the programs' modules (dropout, batch normalization) in training or evaluation mode, and back."""
    modules = [module for owner in modules_of(*programs) for module in owner.modules()]
    before = [module.training for module in modules]
    try:
        for module in modules:
            module.training = training
        yield
    finally:
        for module, was_training in zip(modules, before, strict=True):
            module.training = was_training


def as_seed(seed: int) -> int:
    """Return a seed, or refuse what torch does not take as one.

    Raises:
        TypeError, ValueError: with the value received.

    Example:
        >>> as_seed(-1)
        -1
    """
    if not isinstance(seed, Integral):
        raise TypeError(f"seed must be an integer, not {seed!r}")
    if not -(2**63) <= seed < 2**64:
        raise ValueError(f"seed must be from -2^63 to 2^64 - 1, not {seed!r}")
    return int(seed)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's random state on the CPU and on a device, and put both back at the end.

    Both are the whole process's, and so is Pyro's stack of handlers: threads take turns here.
    """
    cuda = device.type == "cuda"
    seed = as_seed(seed)
    with _TURN, torch.random.fork_rng([device] if cuda else []):
        torch.default_generator.manual_seed(seed)
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


@torch.no_grad()
def check_programs(model: Program, guide: Program, x: Rows, transform: Transform | None = None) -> None:
    """Refuse programs that do not fit each other or the data, naming the part and the fix.

    Arguments:
        model: the Pyro program of p(x, z).
        guide: the Pyro program of q(z|x).
        x: all data, shape (N, \\*shape). NaN is accepted where the support of the model's site for x has it, as a
            missing entry (`pyro_vae.decoders.Masked`).
        transform: what is done to a batch before the programs see it.

    Raises:
        TypeError: for a part or a site that is a plain torch distribution, or none.
        ValueError: for data that are not finite or outside the model's support, shapes that do not fit, and a prior
            and an encoder on different supports.
    """
    for program in (model, guide):
        if isinstance(poutine.unwrap(program), VAE):
            raise TypeError("a VAE is two programs: take vae.model and vae.guide of it")
    first = x[:2]
    _refuse(first, first.isinf(), FINITE)
    first = first.nan_to_num(0.5)  # a number that every network can take; what is missing comes below
    transform = (lambda x: x) if transform is None else as_function(transform, "transform")
    batch = transform(first)
    for module in modules_of(model, guide):
        if isinstance(module, VAE):
            _check_parts(module, batch)
    local = LocalModules()
    with _PyroDistributions():
        model_trace, guide_trace = paired_traces(local(model), local(guide), batch)
    _check_sites(model_trace, guide_trace)
    sites = [model_trace.nodes[name] for name in model_trace.observation_nodes]
    of_data = [site for site in sites if isinstance(site["value"], Tensor) and site["value"].shape == batch.shape]
    start, complete = 0, True
    for rows in x.split(max(1, min(10_000, LARGEST_CHUNK // first[0].numel()))):
        _refuse(rows, rows.isinf(), FINITE, start)
        missing = rows.isnan()
        if complete and missing.any():
            complete = False
            if not any(accepts_nan(site["fn"].support, site["value"]) for site in sites):
                _refuse(rows, missing, f"{FINITE}, or score only the rest (decoders.Masked)", start)
            incomplete = rows[missing.flatten(1).any(1)][:2]
            _check_guide_of_missing(local(guide), transform(incomplete))
        for site in of_data:
            value = transform(rows)
            try:
                _check_support(site, value)
            except RuntimeError:  # the support hangs on the parameters, whose batch was another
                model_trace, _ = paired_traces(local(model), local(guide), value)
                _check_support(model_trace.nodes[site["name"]], value)
        start += len(rows)


def _refuse(x: Tensor, bad: Tensor, fix: str, start: int = 0) -> None:
    if bad.any():
        index, *rest = bad.nonzero()[0].tolist()
        raise ValueError(f"the data hold {x[index, *rest].item()} at index {(start + index, *rest)}; {fix}")


def accepts_nan(support: Any, value: Any) -> bool:
    """Whether a support has NaN, as a missing entry of a value."""
    return isinstance(value, Tensor) and bool(support.check(torch.full_like(value, torch.nan)).all())


def _check_guide_of_missing(guide: Program, batch: Tensor) -> None:
    fix = "build the encoder with network=networks.FillMissing"
    try:
        trace = poutine.trace(guide).get_trace(batch)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"the guide fails on data with missing entries: {fix}") from error
    for name in trace.stochastic_nodes:
        if not trace.nodes[name]["value"].isfinite().all():
            raise ValueError(f"the guide's site {name!r} is not finite on data with missing entries: {fix}")


def _check_parts(vae: VAE, x: Tensor) -> None:
    prior = _distribution("the prior", (), vae.prior)
    posterior = _distribution("the encoder", (len(x),), vae.encoder, x)
    if prior.event_shape != posterior.event_shape:
        shapes = f"{tuple(prior.event_shape)} and the encoder's {tuple(posterior.event_shape)}"
        raise ValueError(f"the prior's event shape is {shapes}: give both one latent_dim")
    _check_same_support("the prior", prior, "the encoder", posterior)
    likelihood = _distribution("the decoder", (len(x),), vae.decoder, posterior())
    if likelihood.event_shape != x.shape[1:]:
        shapes = f"{tuple(likelihood.event_shape)}, but one datum has shape {tuple(x.shape[1:])}"
        raise ValueError(f"the decoder's event shape is {shapes}: build the decoder for it, or reshape the data")


def _distribution(part: str, batch_shape: tuple[int, ...], module: nn.Module, *args: Tensor) -> TorchDistributionMixin:
    try:
        result = module(*args)
    except (RuntimeError, TypeError) as error:
        shapes = " and ".join(str(tuple(arg.shape)) for arg in args) or "no input"
        raise ValueError(f"{part}, {type(module).__name__}, fails on {shapes}: {error}") from error
    if not isinstance(result, TorchDistributionMixin):
        raise TypeError(f"{part} must return a distribution of pyro.distributions, but returned {_kind(result)}")
    if tuple(result.batch_shape) != batch_shape:
        extra = len(result.batch_shape) - len(batch_shape)
        whole = "give it data of shape (N, *shape), and take fewer dimensions into its event"
        raise ValueError(
            f"{part} must return a distribution of batch shape {batch_shape}, but returned batch shape"
            f" {tuple(result.batch_shape)} and event shape {tuple(result.event_shape)}:"
            f" {whole if extra < 0 else f'end it with .to_event({max(1, extra)})'}"
        )
    return result


def _kind(value: Any) -> str:
    name = f"{type(value).__module__}.{type(value).__name__}"
    plain = isinstance(value, torch.distributions.Distribution)
    return f"a plain {name}; take pyro.distributions.{type(value).__name__}" if plain else f"a {name}"


def _check_same_support(
    prior_name: str, prior: TorchDistributionMixin, posterior_name: str, posterior: TorchDistributionMixin
) -> None:
    draws = posterior.sample((100,)), prior.expand(posterior.batch_shape).sample((100,))
    probes = [torch.full_like(draws[0][0], value) for value in (-1.5, 0.0, 0.5, 1.5)]  # what draws may miss by chance
    beyond = any((posterior.support.check(probe) & ~prior.support.check(probe)).any() for probe in probes)
    apart = len({isinstance(_inner(fn.support), KeptLogarithms) for fn in (prior, posterior)}) == 2
    if apart or beyond or not (prior.support.check(draws[0]).all() and posterior.support.check(draws[1]).all()):
        supports = f"{_support(prior.support)}, {posterior_name} on {_support(posterior.support)}"
        raise ValueError(f"{prior_name} lives on {supports}: choose a pair on one support")


def _inner(constraint: Any) -> Any:
    return _inner(constraint.base_constraint) if hasattr(constraint, "base_constraint") else constraint


def _support(constraint: Any) -> str:
    name = str(_inner(constraint)).removesuffix("()")
    return {"Boolean": "{0, 1}", "Interval(lower_bound=0.0, upper_bound=1.0)": "[0, 1]"}.get(name, name)


class _PyroDistributions(Messenger):
    """Refuse a sample site whose distribution is not one of Pyro's, before anything is drawn from it."""

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if not isinstance(msg["fn"], TorchDistributionMixin) and type(msg["fn"]).__name__ != "_Subsample":
            raise TypeError(
                f"site {msg['name']!r} must have a distribution of pyro.distributions, not {_kind(msg['fn'])}"
            )


def _check_sites(model_trace: Trace, guide_trace: Trace) -> None:
    if not model_trace.observation_nodes:
        raise ValueError("the model observes nothing: give one of its sample sites obs=x")
    for name in guide_trace.stochastic_nodes:
        if name in model_trace.nodes:
            prior, posterior = model_trace.nodes[name]["fn"], guide_trace.nodes[name]["fn"]
            if (prior.batch_shape, prior.event_shape) != (posterior.batch_shape, posterior.event_shape):
                shapes = f"{tuple(prior.shape())} in the model and {tuple(posterior.shape())} in the guide"
                events = f"event shape {tuple(prior.event_shape)} and {tuple(posterior.event_shape)}"
                raise ValueError(f"site {name!r} has shape {shapes}, {events}; they must be equal (see .to_event)")
            _check_same_support(f"site {name!r} of the model", prior, "of the guide", posterior)


def _check_support(site: dict[str, Any], value: Tensor) -> None:
    support = site["fn"].support
    if support.check(value).all():
        return
    inner = _inner(support)
    allowed = inner.check(value) | (value.isnan() if accepts_nan(support, value) else False)
    bad = value[~allowed].flatten()
    kind = _support(support)
    if hasattr(inner, "hint"):
        fix = inner.hint
    elif kind == "{0, 1}" and bad.min() >= 0 and bad.max() <= 1:
        fix = "binarize the data (threshold or dynamic), or accept grey values by name (decoders.Bernoulli(grey=True))"
    elif bad.min() >= 0 and bad.max() > 1:
        fix = "scale the data to [0, 1] (8-bit pixels: x / 255, or --scale 255), or choose another decoder"
    else:
        fix = "scale the data, or choose another decoder"
    raise ValueError(
        f"the data hold {bad[0].item():.6g}, outside the support {kind} of the decoder (site {site['name']!r}): {fix}"
    )
