"""Pairs of Pyro programs from outside: whose modules they run, where, in which mode, and whether they fit the data."""

import inspect
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dis import get_instructions
from functools import cache, partial
from importlib import import_module
from numbers import Integral
from types import CellType, CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.nn import PyroModule
from pyro.poutine.guide import GuideMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import _DIM_ALLOCATOR, _PYRO_STACK
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils._pytree import tree_leaves

from pyro_vae.batch import Batch, Count, are_rows, arguments, count_of, in_words, map_tensors, named, tensors_of
from pyro_vae.data import Ready, Rows, as_rows, count_in, cut
from pyro_vae.distributions.relaxed import KeptLogarithms
from pyro_vae.distributions.wrappers import layers, with_density
from pyro_vae.engine import of_library, slots_of
from pyro_vae.handlers import STORE_HOLDS, LocalModules, Program
from pyro_vae.networks import as_function
from pyro_vae.objectives import DataPlates, data_plates
from pyro_vae.vae import VAE

Transform = Callable[[Batch], Batch]
FINITE = "remove or fill what is not finite"
RESERVED = {"model", "guide", "particles", "dims"}  # what Pyro's ELBOs and those of this package take by name
PLAIN = int | float | complex | str | bytes | Tensor | np.ndarray | None  # hold nothing
_TURN = threading.RLock()
LARGEST_CHUNK = 2**20  # numbers that are checked together


def paired_traces(model: Program, guide: Program, *args: Any, **kwargs: Any) -> tuple[Trace, Trace]:
    """Run the guide, then the model at the guide's sample.

    Arguments:
        model: the Pyro program of p(x, z).
        guide: the Pyro program of q(z|x).
        args: what both are called with.
        kwargs: likewise, by name.

    Returns:
        The traces of model and guide, without their plates' own sites.

    Example:
        >>> from pyro_vae import VAE, decoders, encoders, priors
        >>> vae = VAE(priors.Normal(2), encoders.Normal(64, 2), decoders.Normal(2, 64))
        >>> model_trace, guide_trace = paired_traces(vae.model, vae.guide, torch.zeros(5, 64))
        >>> model_trace.stochastic_nodes, model_trace.observation_nodes
        (['z'], ['x'])
    """
    guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
    model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
    return prune_subsample_sites(model_trace), prune_subsample_sites(guide_trace)


def modules_of(*programs: Program) -> list[nn.Module]:
    """Return the modules that programs hold, those within others left out.

    They are looked for wherever a program reaches them by name: it is one or a method of one, or has it in its closure,
    its defaults, its arguments (``functools.partial``), among the globals that it names, or in an object of these.

    Arguments:
        programs: Pyro programs.

    Returns:
        The modules, in the order in which they are found.

    Example:
        >>> modules_of(partial(nn.Linear(2, 3), bias=None))
        [Linear(in_features=2, out_features=3, bias=True)]
    """
    found: dict[int, nn.Module] = {}
    seen: dict[int, Any] = {}  # which keeps alive what is made on the way
    waiting = [poutine.unwrap(program) for program in reversed(programs)]
    while waiting:
        value = waiting.pop()
        if id(value) not in seen:
            seen[id(value)] = value
            if isinstance(value, nn.Module):
                found[id(value)] = value
            waiting.extend(reversed(_held(value)))
    within = {id(module) for owner in found.values() for module in owner.modules() if module is not owner}
    return [module for key, module in found.items() if key not in within]


def _held(value: Any) -> list[Any]:
    """Return what a value holds that a program can reach through it."""
    if isinstance(value, MethodType | staticmethod | classmethod):
        return [getattr(value, "__self__", None), value.__func__]
    if isinstance(value, partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, property):
        return [value.fget]
    if isinstance(value, dict | list | tuple | set | frozenset):
        items = value.values() if isinstance(value, dict) else value
        return [item for item in items if not isinstance(item, PLAIN)]
    if isinstance(value, FunctionType | type) and _is_library(value):
        return []
    if isinstance(value, FunctionType):
        return [*_closure(value), *vars(value).values()]
    if isinstance(value, type):
        return list(vars(value).values())
    if isinstance(value, nn.Module) or not _is_library(type(value)):
        slots = [getattr(value, name, None) for name in slots_of(value)]
        return [*getattr(value, "__dict__", {}).values(), *slots, *type(value).__mro__]
    return []


def _is_library(value: Any) -> bool:
    """Whether a function or a class was written elsewhere, where it names no module of the user's."""
    return of_library(str(getattr(value, "__module__", "")))


def _closure(function: FunctionType) -> list[Any]:
    cells = [cell.cell_contents for cell in function.__closure__ or () if cell != CellType()]
    named = [function.__globals__[name] for name in _globals_of(function.__code__) if name in function.__globals__]
    return [*cells, *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values(), *named]


@cache
def _globals_of(code: CodeType) -> list[str]:
    """Return the names of the globals that code reads, that of the functions within it, too."""
    within = [name for constant in code.co_consts if isinstance(constant, CodeType) for name in _globals_of(constant)]
    return [step.argval for step in get_instructions(code) if step.opname == "LOAD_GLOBAL"] + within


@contextmanager
def _reached(*programs: Program) -> Iterator[None]:
    """Refuse a module that programs call but `modules_of` does not find, if it has a mode or buffers."""
    known: set[int] = set()

    def look(module: nn.Module, _: Any) -> None:
        if id(module) not in known:  # it may have been made just now
            known.update(id(module) for owner in modules_of(*programs) for module in owner.modules())
        if id(module) not in known and _changes(module):
            raise TypeError(
                f"the programs call a module, {type(module).__name__}, that is not found from them, so that its mode"
                " and buffers would be lost: let them be methods of a module that holds it, or have it in a closure"
            )

    hook = register_module_forward_pre_hook(look)
    try:
        yield
    finally:
        hook.remove()


def _changes(module: nn.Module) -> bool:
    """Whether a module may do something else in training than in evaluation, or keeps buffers."""
    methods = [each for cls in type(module).__mro__ if cls is not nn.Module for each in vars(cls).values()]
    reads = any("training" in method.__code__.co_names for method in methods if isinstance(method, FunctionType))
    buffers = next(module.buffers(recurse=False), None) is not None
    return buffers or bool(getattr(module, "dropout", 0)) or reads


def as_input(data: Any, *programs: Program, count: Count | None = None, transform: Transform | None = None) -> Rows:
    """Return data as rows, on the device and in the precision of the programs' modules.

    Arguments:
        data: what `pyro_vae.data.as_rows` takes; an `EightBit`, a `MemoryMapped` or an
            ``IterableDataset``, read a batch at a time.
        programs: what is called with the data; plain functions leave the data as they are.
        count: returns the number of data of a ready batch.
        transform: what makes of a batch what the programs are called with, if anything does.

    Returns:
        A floating-point tensor whose first dimension counts the data, or what reads such rows.

    Raises:
        TypeError: where the programs cannot be called with such data.

    Example:
        >>> as_input(torch.zeros(3, 2), nn.Linear(2, 2).double()).dtype
        torch.float64
    """
    with torch.random.fork_rng([]):  # from which data may draw an order, or noise
        x = as_rows(data, lambda batch: all(takes(program, batch) for program in programs), count)
        if transform is None:
            check_calls(x[:1], *programs)
    parameters = [parameter for module in modules_of(*programs) for parameter in module.parameters()]
    dtypes = [parameter.dtype for parameter in parameters if parameter.is_floating_point()]
    return x.to(parameters[0].device, (dtypes or [torch.get_default_dtype()])[0]) if parameters else x


def takes(program: Program, batch: Batch) -> bool:
    """Whether a program can be called with a batch, by its arguments.

    Example:
        >>> takes(lambda x, y=None: None, (1, 2)), takes(lambda x: None, (1, 2)), takes(lambda x: None, {"x": 1})
        (True, False, True)
    """
    args, kwargs = arguments(batch)
    try:
        _signature(program).bind(*args, **kwargs)
    except TypeError:
        return False
    return True


def _signature(program: Program) -> inspect.Signature:
    called = poutine.unwrap(program)
    try:
        return inspect.signature(called.forward if isinstance(called, nn.Module) else called)
    except (TypeError, ValueError):  # of what is not written in Python
        return inspect.signature(lambda *_, **__: None)


def check_calls(batch: Batch, *programs: Program) -> None:
    """Refuse a batch that programs cannot be called with.

    Arguments:
        batch: of the data.
        programs: the model and the guide.

    Raises:
        TypeError: with what a batch is, and how the programs are to be written for it.

    Example:
        >>> check_calls({"y": 1}, lambda x: None)
        Traceback (most recent call last):
        ...
        TypeError: the model takes (x), but a batch is {y: 1}: write model(y) and guide(y), or give data for (x)
    """
    for name in RESERVED & set(batch if isinstance(batch, dict) else ()):
        raise TypeError(f"a batch must not have the key {name!r}, an argument of the objectives: rename it")
    for name, program in zip(("model", "guide"), programs, strict=False):
        if not takes(program, batch):
            args, kwargs = arguments(batch)
            names = ["x", "y"] if len(args) < 3 else [f"x{number}" for number in range(len(args))]
            spelled = ", ".join(kwargs or names[: len(args)])
            taken = ", ".join(map(str, _signature(program).parameters))
            fix = f"write model({spelled}) and guide({spelled}), or give data for ({taken})"
            raise TypeError(f"the {name} takes ({taken}), but a batch is {in_words(batch)}: {fix}")


def transformed(rows: Batch, transform: Transform | None, count: Count = count_of) -> Batch:
    """Return what the programs see of some data.

    Arguments:
        rows: the data, of any number.
        transform: what is done to them before, if anything.
        count: returns their number.

    Returns:
        As many data.

    Raises:
        ValueError: where the transform makes more or fewer data of them, as what is reported is per datum.

    Example:
        >>> transformed(torch.ones(2, 1), lambda rows: rows[:1])
        Traceback (most recent call last):
        ...
        ValueError: the transform makes tensor of shape (1, 1) of tensor of shape (2, 1): it must return as many data
    """
    if transform is None:
        return rows
    batch = transform(rows)
    try:
        first = tensors_of(batch)[:1]
        alike = bool(first and (first[0].dim() or count is not count_of)) and count(batch) == count(rows)
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"count fails on {in_words(batch)}, which the transform makes ({reason}): let it take both"
        ) from error
    if not alike:
        raise ValueError(f"the transform makes {in_words(batch)} of {in_words(rows)}: it must return as many data")
    return batch


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


def _wait_for_short_locks() -> None:
    """Let another thread that trains end its draw and its import: a forked process would wait for either for ever."""
    if _TURN.acquire(blocking=False):
        _TURN.release()
        return
    for name, module in list(sys.modules.items()):
        if getattr(getattr(module, "__spec__", None), "_initializing", False):
            with suppress(ImportError):
                import_module(name)  # which ends when the other thread's import does; torch imports much when asked
    torch.default_generator.get_state()


def _take_turns_anew() -> None:
    """Begin a forked process without a training of another thread, which has not come along.

    It would have kept the lock for ever, and left its handlers and plates to the programs of this process.
    """
    global _TURN
    if _TURN.acquire(blocking=False):
        _TURN.release()
    else:
        _TURN = threading.RLock()
        _PYRO_STACK.clear()
        _DIM_ALLOCATOR._stack.clear()


if hasattr(os, "register_at_fork"):  # where processes can be forked
    os.register_at_fork(before=_wait_for_short_locks, after_in_child=_take_turns_anew)


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
def check_programs(
    model: Program, guide: Program, x: Rows, transform: Transform | None = None, batch_size: int = 2, of: str = ""
) -> DataPlates:
    """Refuse programs that do not fit each other or the data, naming the part and the fix.

    The programs run on a copy of the parameter store, which stays as it is.

    Arguments:
        model: the Pyro program of p(x, z).
        guide: the Pyro program of q(z|x).
        x: all data, shape (N, \\*shape). NaN is accepted where the support of the model's site for x has it, as a
            missing entry (`pyro_vae.decoders.Masked`), and where the programs themselves leave it out.
        transform: what is done to a batch before the programs see it.
        batch_size: how many data the programs are going to see at a time.
        of: which data these are, to be said behind the index of one, such as " of the validation data".

    Returns:
        The programs' plates over the data.

    Raises:
        TypeError: for a part or a site that is a plain torch distribution, or none.
        ValueError: for data that are not finite or outside the model's support, shapes that do not fit, a prior and an
            encoder on different supports, and sites or parameters that hang on how the data are cut into batches.
    """
    for program in (model, guide):
        if isinstance(poutine.unwrap(program), VAE):
            raise TypeError("a VAE is two programs: take vae.model and vae.guide of it")
        if isinstance(poutine.unwrap(program), GuideMessenger):
            kind = type(poutine.unwrap(program)).__name__
            raise TypeError(
                f"{kind} runs the model itself, and is no program beside it: take AutoNormal or another guide"
            )
    count_rows = count_in(x)
    first = x[:batch_size]
    count = count_rows(first)
    _refuse_infinite(first, 0, of)
    first = _filled(first)  # numbers that every network can take; what is missing comes below
    if transform is not None:
        as_function(transform, "transform")
    with _unchanged(first, "the transform changes"):
        batch = transformed(first, transform, count_rows)
    check_calls(batch, model, guide)
    for module in modules_of(model, guide):
        if isinstance(module, VAE) and isinstance(batch, Tensor):
            _check_parts(module, batch[:2])
    _check_names(model, guide)
    with pyro.validation_enabled(), _PyroDistributions(), _reached(model, guide):
        with _Indices(tensors_of(batch)) as indices:
            pair = _first_traces(model, guide, batch, count)
        _check_names(model, guide)  # also of parameters that have just been made
        _check_sites(*pair)
        other, other_count = _of_another_size(x, batch, count, transform)
        other_pair = None if other is None else _on_another_size(model, guide, other, count, other_count, len(x))
        plates = data_plates(pair, count, other_pair, other_count, len(x))
        if count < len(x):
            named_by_data = plates.size == count or plates.names <= indices.given
            _check_parameters(pair, other_pair or pair, 0 if named_by_data else plates.size, len(x))
            indices.check(plates, count, len(x))
        holds = _holds(pair[0], batch)
        size = max(1, sum(part.numel() for part in tensors_of(first)) // count)
        most = max(1, min(10_000 if holds else 1_000, LARGEST_CHUNK // size))
        if not holds and (other_pair is None or plates.size > count):
            most = count  # programs that take no other number, or no more than their plate has
        _check_data(model, guide, x.split(most), transform, holds, count_rows, of)
    return plates


def _of_another_size(x: Rows, batch: Batch, count: int, transform: Transform | None) -> tuple[Batch, int]:
    """Return a batch with another number of data, and this number; None where there is none.

    Ready batches whose tensors do not all begin with the dimension of the data cannot be cut.
    """
    if are_rows(batch, count_in(x)):
        if count > 1:
            return cut(batch, count - 1, count_in(x)), count - 1
        return map_tensors(lambda part: torch.cat([part, part]), batch), 2
    if isinstance(x, Ready) and (rows := x.of_another_size()) is not None:
        return transformed(rows, transform, x.count), x.count(rows)
    return None, count


def _filled(batch: Batch, but: Tensor | None = None) -> Batch:
    """Fill in what is missing, but not in one part."""
    return map_tensors(
        lambda part: part.nan_to_num(0.5) if part.is_floating_point() and part is not but else part, batch
    )


def _check_names(*programs: Program) -> None:
    """Refuse parameters of a ``PyroModule`` whose names another one has, as Pyro joins them.

    The module would take over the other one's value, and train it, or never train its own.
    """
    if pyro.settings.get("module_local_params"):  # then they are not joined
        return
    held = {name: value.unconstrained() for name, value in pyro.get_param_store().items()}
    for module in [module for owner in modules_of(*programs) for module in owner.modules()]:
        for name, parameter in module._parameters.items() if isinstance(module, PyroModule) else ():
            full_name = f"{module._pyro_name}.{name}".removeprefix(".").removesuffix("_unconstrained")
            if held.setdefault(full_name, parameter) is not parameter:
                kind = type(module).__name__
                stored = full_name in pyro.get_param_store()
                fix = "call pyro.clear_param_store() first" if stored else "name each, super().__init__('the name')"
                where = "in Pyro's parameter store, of another module or training" if stored else "in another module"
                raise ValueError(f"Pyro would join the parameter {full_name!r} of {kind} with that {where}: {fix}")


def _probe(model: Program, guide: Program, batch: Batch) -> tuple[Trace, Trace]:
    """Run a pair of programs on a copy of the parameter store: what they add to it is sized for this batch.

    A guide that makes its parameters now is to make its own, and not to find those of another module.
    """
    store, local = pyro.get_param_store(), LocalModules()
    own = {id(parameter) for module in modules_of(model, guide) for parameter in module.parameters()}
    state = store.get_state()
    state["params"] = {
        name: value
        for name, value in state["params"].items()
        if not isinstance(value, nn.Parameter) or id(value) in own
    }
    with _unchanged(batch, "the programs change"), store.scope(state):
        args, kwargs = arguments(batch)
        try:
            return paired_traces(local(model), local(guide), *args, **kwargs)
        except (IndexError, RuntimeError) as error:
            if isinstance(batch, Tensor) or isinstance(error, torch.OutOfMemoryError | NotImplementedError):
                raise
            reason = str(error).partition("\n")[0]  # behind which Pyro lists the shapes of the trace
            fix = "give parts that fit each other and the programs"
            raise ValueError(f"the programs fail on {in_words(batch)} ({reason}): {fix}") from error


@contextmanager
def _unchanged(batch: Batch, words: str) -> Iterator[None]:
    """Refuse what changes a batch in place, as it may be a part of the user's own tensor."""
    parts = [part for part in tensors_of(batch) if not part.is_inference()]
    before = [part._version for part in parts]
    yield
    if [part._version for part in parts] != before:
        raise ValueError(
            f"{words} the batch in place, and so the data: begin with x = x.clone(), and take no layer with"
            " inplace=True"
        )


def _first_traces(model: Program, guide: Program, batch: Batch, count: int) -> tuple[Trace, Trace]:
    try:
        return _probe(model, guide, batch)
    except ValueError as error:
        reason = str(error).partition("\n")[0]  # behind which Pyro lists the shapes of the trace
        if "subsample_size does not match" in reason:
            reason = (
                f"a plate of the programs has another size than the batch of {count} that it is to hold: give it"
                " the number of all data and subsample_size=len(x) in both programs, or lower the batch size"
            )
        elif not reason.startswith(STORE_HOLDS):
            raise
        raise ValueError(reason) from error


def _on_another_size(
    model: Program, guide: Program, batch: Batch, count: int, other: int, total: int
) -> tuple[Trace, Trace] | None:
    """Run a pair of programs on a batch of another size; None where they take all data together alone."""
    try:
        return _probe(model, guide, batch)
    except (AssertionError, IndexError, RuntimeError, ValueError) as error:
        if count == total:
            return None
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"the programs run on {count} data, but fail on {other} ({reason}): let them take any number, or all"
            f" {total} data at a time (batch_size={total})"
        ) from error


def _check_parameters(pair: tuple[Trace, Trace], other: tuple[Trace, Trace], size: int, total: int) -> None:
    """Refuse parameters for each datum of a batch, or of a scaled plate, where the next batch holds other data."""
    for trace, another in zip(pair, other, strict=True):
        for name in sorted({*trace.param_nodes} & {*another.param_nodes}):
            shapes = [each.nodes[name]["value"].shape for each in (trace, another)]
            if shapes[0] != shapes[1] or size in shapes[0][:1]:
                raise ValueError(
                    f"the parameter {name!r} of shape {tuple(shapes[0])} has an entry for each datum, but each batch"
                    f" holds other data, in any order: take all of them (batch_size={total}), compute it from x, or let"
                    f" the data hold the index of each datum, i, and give it to the plate, subsample=i"
                )


class _Index(Tensor):
    """The indices of a plate, which call ``note`` with the lengths of what is looked up by them."""

    note: Callable[[set[tuple[int, ...]]], None]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            if func.__name__ not in ("__len__", "__get__", "size", "numel"):  # which tell no index
                tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
                indices = [each for each in tensors if isinstance(each, _Index)]
                for each in indices:
                    each.note({tuple(other.shape[:1]) for other in tensors} - {tuple(each.shape)})
            return func(*args, **(kwargs or {}))


class _Indices(Messenger):
    """Notes the lengths of what programs look up by the indices of their plates.

    Arguments:
        parts: the tensors of the batch. A plate whose ``subsample`` is one of them knows which data the batch holds.
    """

    def __init__(self, parts: list[Tensor]) -> None:
        super().__init__()
        self.parts = parts
        self.read: dict[str, set[tuple[int, ...]]] = {}
        self.given: set[str] = set()

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if type(msg["fn"]).__name__ == "_Subsample" and any(msg["value"] is part for part in self.parts):
            self.given.add(msg["name"])

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        if msg["name"] in self.given:
            return
        if type(msg["fn"]).__name__ == "_Subsample" and isinstance(msg["value"], Tensor) and not msg["is_observed"]:
            name, index = msg["name"], msg["value"].as_subclass(_Index)
            index.note = lambda lengths: self.read.setdefault(name, set()).update(lengths)
            msg["value"] = index

    def check(self, plates: DataPlates, count: int, total: int) -> None:
        """Refuse programs that look up more by these numbers than what the batch holds: it would be of other data."""
        for name in plates.names & self.read.keys():
            if plates.size > count or self.read[name] - {()}:
                raise ValueError(
                    f"the programs read the indices of the plate {name!r}, which are not the numbers of the data in a"
                    f" batch: let x hold all that belongs to a datum, or take all data at a time (batch_size={total})"
                )


def _holds(model_trace: Trace, batch: Batch) -> dict[str, Any] | None:
    """Return the site that observes the batch as it is, if no other does and its support hangs on nothing."""
    if not isinstance(batch, Tensor):
        return None
    sites = _observed(model_trace)
    value, support = sites[0]["value"], _inner(support_of(sites[0]["fn"]))
    as_it_is = isinstance(value, Tensor) and value.shape == batch.shape and value.data_ptr() == batch.data_ptr()
    constant = support is _inner(support_of(sites[0]["fn"]))  # made anew where it hangs on parameters
    return sites[0] if len(sites) == 1 and as_it_is and value.stride() == batch.stride() and constant else None


def _check_data(
    model: Program,
    guide: Program,
    chunks: Iterable[Batch],
    transform: Transform | None,
    holds: dict[str, Any] | None,
    count: Count,
    of: str,
) -> None:
    """Refuse data that are not finite, or outside the support of a site that observes them.

    Arguments:
        model: the Pyro program of p(x, z).
        guide: the Pyro program of q(z|x).
        chunks: all data, so many at a time.
        transform: what is done to a batch before the programs see it.
        holds: the site that observes the batch as it is; else the programs are run on all data.
        count: returns how many data a batch has.
        of: which data these are.
    """
    start, checked = 0, set[str]()
    for rows in chunks:
        _refuse_infinite(rows, start, of)
        for name, part in named(rows):
            missing = part.isnan() if isinstance(part, Tensor) and part.is_floating_point() else None
            if name not in checked and missing is not None and missing.any():
                checked.add(name)
                some = missing.flatten(1).any(1) if part.dim() > 1 else missing
                incomplete = transformed(_where(_filled(rows, part), some, count), transform, count)
                if not _takes_missing(model, guide, incomplete):
                    fix = f"{FINITE}, or score only the rest (decoders.Masked)"
                    _refuse(part, missing, fix, start, _of_part(name, of))
                _check_guide_of_missing(guide, incomplete)
        value = transformed(rows, transform, count)
        if holds:
            _check_support(holds, value)
        else:
            check_calls(value, model, guide)
            for site in _observed(_probe(model, guide, value)[0]):
                _check_support(site, site["value"])
        start += count(rows)


def _where(rows: Batch, some: Tensor, count: Count) -> Batch:
    """Return two of some data, or the whole batch where it cannot be cut."""
    return map_tensors(lambda part: part[some][:2], rows) if are_rows(rows, count) else rows


def _refuse_infinite(batch: Batch, start: int, of: str) -> None:
    for name, part in named(batch):
        if isinstance(part, Tensor) and part.is_floating_point():
            fix = f"{FINITE}, or beyond {torch.finfo(part.dtype).max:.3g}"
            _refuse(part, part.isinf(), fix, start, _of_part(name, of))


def _of_part(name: str, of: str) -> str:
    return f" of part {name}{of}" if name else of


def _refuse(x: Tensor, bad: Tensor, fix: str, start: int, of: str) -> None:
    if bad.any():
        index, *rest = bad.nonzero()[0].tolist()
        raise ValueError(f"the data hold {x[index, *rest].item()} at index {(start + index, *rest)}{of}; {fix}")


def support_of(distribution: Any) -> Any:
    """Return a distribution's support; None where it names none, as ``pyro.contrib.zuko.ZukoToPyro``."""
    try:
        return distribution.support
    except NotImplementedError:
        return None


def accepts_nan(site: dict[str, Any]) -> bool:
    """Whether the support of an observed site has NaN, as a missing entry of its value."""
    support, value = support_of(site["fn"]), site["value"]
    return isinstance(value, Tensor) and support is not None and _all_nan(support, value)


def _all_nan(support: Any, value: Tensor) -> bool:
    return value.is_floating_point() and bool(support.check(torch.full_like(value, torch.nan)).all())


def _takes_missing(model: Program, guide: Program, batch: Batch) -> bool:
    """Whether a program has missing entries in a support, or itself leaves them out."""
    filled = _observed(_probe(model, guide, _filled(batch))[0])
    if any(accepts_nan(site) for site in filled):
        _check_guide_of_missing(guide, batch)
    try:
        trace = _probe(model, guide, batch)[0]
        trace.compute_log_prob(lambda _, site: site["is_observed"])
    except (RuntimeError, ValueError):
        return False
    return all(bool(site["log_prob"].isfinite().all()) for site in _observed(trace))


def _check_guide_of_missing(guide: Program, batch: Batch) -> None:
    fix = "build the encoder with network=networks.FillMissing"
    try:
        _, trace = _probe(lambda *_, **__: None, guide, batch)
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
    of_prior, of_posterior = support_of(prior), support_of(posterior)
    if of_prior is None or of_posterior is None:
        return
    each = max(1, 100 // max(1, posterior.batch_shape.numel()))  # 100 draws or more, also of large batches
    draws = posterior.sample((each,)), prior.expand(posterior.batch_shape).sample((each,))
    probes = [torch.full_like(draws[0][0], value) for value in (-1.5, 0.0, 0.5, 1.5)]  # what draws may miss by chance
    beyond = any((of_posterior.check(probe) & ~of_prior.check(probe)).any() for probe in probes)
    apart = len({isinstance(_inner(support), KeptLogarithms) for support in (of_prior, of_posterior)}) == 2
    if apart or beyond or not (of_prior.check(draws[0]).all() and of_posterior.check(draws[1]).all()):
        if not draws[0].isfinite().all():
            bad = draws[0][~draws[0].isfinite()][0].item()
            raise ValueError(f"{prior_name} meets a draw of {bad} ({posterior_name}): start at a smaller scale")
        supports = f"{_support(of_prior)}, {posterior_name} {_support(of_posterior)}"
        raise ValueError(f"{prior_name} has support {supports}; they must match")


def _check_values(name: str, prior: TorchDistributionMixin, value: Tensor) -> None:
    """Refuse values of a guide's site outside the support of the model's."""
    support = support_of(prior)
    if support is not None and not support.check(value).all():
        bad = value[~_inner(support).check(value)] if support.event_dim == 0 else value
        raise ValueError(
            f"site {name!r} of the guide takes the value {bad.flatten()[0].item():.6g}, outside the support"
            f" {_support(support)} of the model's: give its parameter that constraint"
        )


def _inner(constraint: Any) -> Any:
    return _inner(constraint.base_constraint) if hasattr(constraint, "base_constraint") else constraint


def _support(constraint: Any) -> str:
    name = str(_inner(constraint)).removesuffix("()")
    name = type(_inner(constraint)).__name__ if "tensor(" in name else name  # which would list all its numbers
    return {"Boolean": "{0, 1}", "Interval(lower_bound=0.0, upper_bound=1.0)": "[0, 1]"}.get(name, name)


class _PyroDistributions(Messenger):
    """Refuse a sample site whose distribution is not one of Pyro's, before anything is drawn from it."""

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if not isinstance(msg["fn"], TorchDistributionMixin) and type(msg["fn"]).__name__ != "_Subsample":
            raise TypeError(
                f"site {msg['name']!r} must have a distribution of pyro.distributions, not {_kind(msg['fn'])}"
            )


def _observed(model_trace: Trace) -> list[dict[str, Any]]:
    """Return the sites by which data count in the bound: observed, with a density, and not masked as a whole."""
    sites = [model_trace.nodes[name] for name in model_trace.observation_nodes]
    return [site for site in sites if not (site["mask"] is False or getattr(site["fn"], "_mask", None) is False)]


def _check_sites(model_trace: Trace, guide_trace: Trace) -> None:
    observed = _observed(model_trace)
    if not observed:
        raise ValueError("the model observes nothing: give one of its sample sites obs=x")
    for site in observed:
        _check_observed_shape(site)
    _check_both_draw(model_trace, guide_trace)
    for name in guide_trace.stochastic_nodes:
        if name in model_trace.nodes:
            prior, posterior = model_trace.nodes[name]["fn"], guide_trace.nodes[name]["fn"]
            if (prior.batch_shape, prior.event_shape) != (posterior.batch_shape, posterior.event_shape):
                shapes = f"{tuple(prior.shape())} in the model and {tuple(posterior.shape())} in the guide"
                events = f"event shape {tuple(prior.event_shape)} and {tuple(posterior.event_shape)}"
                raise ValueError(f"site {name!r} has shape {shapes}, {events}; they must be equal (see .to_event)")
            if _is_point(posterior) or support_of(posterior) is None:
                _check_values(name, prior, guide_trace.nodes[name]["value"])
            else:
                _check_same_support(f"site {name!r} of the model", prior, "of the guide", posterior)
    for site in [*observed, *(model_trace.nodes[name] for name in model_trace.stochastic_nodes)]:
        if any(hasattr(layer, "transforms") for layer in layers(site["fn"])):
            with torch.no_grad(), pyro.validation_enabled(False), with_density(site["name"], site["fn"]):
                site["fn"].log_prob(site["value"])


def _check_both_draw(model_trace: Trace, guide_trace: Trace) -> None:
    """Refuse sites of one program whose density the other does not answer: the KL of them would be no KL."""
    for site in _observed(guide_trace):
        if not site["infer"].get("_deterministic"):
            raise ValueError(
                f"the guide observes site {site['name']!r}, whose density is of no latent site: let the model have it"
                " (a pyro.factor of the guide with the opposite sign)"
            )
    for name in model_trace.stochastic_nodes:
        site, drawn = model_trace.nodes[name], guide_trace.nodes.get(name)
        if drawn is None and site["mask"] is not False and not site["infer"].get("enumerate"):
            raise ValueError(f"the model draws site {name!r}, and the guide does not: let the guide draw it, too")
        masks = [each["mask"] for each in (site, drawn) if each and isinstance(each["mask"], Tensor)]
        if drawn and masks and not (len(masks) == 2 and torch.equal(*torch.broadcast_tensors(*masks))):
            raise ValueError(
                f"site {name!r} has another mask in the model than in the guide: put poutine.mask around it in both"
            )


def _is_point(distribution: Any) -> bool:
    return any(isinstance(layer, dist.Delta) for layer in layers(distribution))


@torch.no_grad()
def check_points(model: Program, guide: Program, batch: Batch) -> bool:
    """Refuse points of a guide that lie outside the support of the model's site, where training may bring them.

    Arguments:
        model: the Pyro program of p(x, z).
        guide: the Pyro program of q(z|x).
        batch: what both are called with.

    Returns:
        Whether there are points that may leave their support.

    Raises:
        ValueError: with the site and the value.
    """
    model_trace, guide_trace = _probe(model, guide, batch)
    points = [name for name in guide_trace.stochastic_nodes if _is_point(guide_trace.nodes[name]["fn"])]
    bounded = [name for name in points if name in model_trace and not _is_real(model_trace.nodes[name]["fn"])]
    for name in bounded:
        _check_values(name, model_trace.nodes[name]["fn"], guide_trace.nodes[name]["value"])
    return bool(bounded)


def _is_real(distribution: Any) -> bool:
    support = support_of(distribution)
    return support is None or _inner(support) in (constraints.real, constraints.real_vector)


def _check_observed_shape(site: dict[str, Any]) -> None:
    """Refuse a value that would be scored several times, or have several scores."""
    fn, shape = site["fn"], torch.as_tensor(site["value"]).shape
    batch, event = shape[: len(shape) - len(fn.event_shape)], shape[len(shape) - len(fn.event_shape) :]
    if event != fn.event_shape or batch != fn.batch_shape[len(fn.batch_shape) - len(batch) :]:
        raise ValueError(
            f"site {site['name']!r} observes a value of shape {tuple(shape)} under a distribution of batch shape"
            f" {tuple(fn.batch_shape)} and event shape {tuple(fn.event_shape)}: they must be equal, as one number is"
            " scored once"
        )


def _check_support(site: dict[str, Any], value: Tensor) -> None:
    support = support_of(site["fn"])
    if support is None or _unchecked(site["fn"]) or support.check(value).all():
        return
    inner = _inner(support)
    allowed = inner.check(value) | (value.isnan() if _all_nan(support, value) else False)
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


def _unchecked(distribution: Any) -> bool:
    """Whether a program says of a distribution that its values are not to be checked."""
    shapes = dist.Independent | dist.ExpandedDistribution | dist.MaskedDistribution
    scores = next(layer for layer in layers(distribution) if not isinstance(layer, shapes))
    return vars(scores).get("_validate_args") is False
