"""Where a training stands: all that its next step hangs on, as tensors and plain values, and back."""

import copy
import hashlib
import json
import math
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from inspect import getattr_static
from logging import Logger
from types import (
    BuiltinFunctionType,
    CodeType,
    FunctionType,
    MappingProxyType,
    MethodType,
    ModuleType,
)
from typing import Any, Protocol
from weakref import ReferenceType

import numpy as np
import pyro
import torch
from pyro.params.param_store import ParamStoreDict
from pyro.poutine.trace_messenger import TraceMessenger
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.distributions.transforms import _InverseTransform
from torch.distributions.utils import lazy_property
from torch.fx import GraphModule

from pyro_vae.checkpoints import Tensors, check_group, check_random, check_tensors, checked_state
from pyro_vae.data import EightBit, Rows, Stream, digest_of
from pyro_vae.distributed import Ranks
from pyro_vae.engine import PLAIN, TRUSTED, held_in, read_globals, root_of, slots_of

OPAQUE = (ReferenceType, ParamStoreDict, Logger)  # a run makes and changes them, and they change no number
MADE = ("_cached", "_last", "_drawn", "_used", "_indices", "_intervener_id")  # what a library's objects note begins so
# What classes have that says nothing of what they compute; copies of an object leave the names of its slots.
ABOUT = (
    *("__doc__", "__annotations__", "__dict__", "__weakref__"),
    *("__slotnames__", "__firstlineno__", "__static_attributes__"),
)
GIVEN = ("_pyro_samples", "_pyro_params")  # to a module of Pyro's, which notes other things under "_pyro"
PROGRAMS = ("model", "guide", "transform", "beta")  # what a step calls that may hold, and change, things in Python
CHANGES = (
    "the {} changes what it holds in Python, such as a count, and a checkpoint does not keep that: if its numbers "
    "depend on it, the resumed training is another one; keep it in a buffer of a module"
)
BASELINE = "__baseline_"  # what names of the running means of TraceGraph_ELBO begin with, in Pyro 1.9


class Met(Protocol):
    """The parameters that programs have met, which `pyro_vae.handlers.LocalModules` collects."""

    constraints: dict[str, str]
    saved: dict[str, tuple[Tensor, str]]

    @property
    def parameters(self) -> list[Tensor]:
        """The parameters, unconstrained."""

    @property
    def names(self) -> list[str]:
        """What the programs call them."""


class Progress:
    """What `fit` has done, and what it does next.

    ``epoch`` counts from 1, ``step`` from 0 over all epochs, ``batches`` from 0 within the epoch; ``totals`` and
    ``seconds`` are of the epoch under way, and ``order_state`` is from its start.

    Arguments:
        history: the rows measured so far, to which those of a checkpoint are added.
        modules: those of the programs.
        local: what has met the programs' parameters.
        order: the source of the order of the data.
        device: where the programs are.
        ranks: the processes of the training, each with a random state of its own.
        settings: plain values that a checkpoint must have been made with to be continued.
        programs: what `PROGRAMS` names, which must be those of the checkpoint.
    """

    def __init__(
        self,
        history: list[dict[str, float]],
        modules: Sequence[nn.Module],
        local: Met,
        order: torch.Generator,
        device: torch.device,
        ranks: Ranks,
        settings: dict[str, Any],
        programs: Sequence[Any],
    ) -> None:
        self.history, self.modules, self.local, self.order, self.device = history, modules, local, order, device
        self.ranks, self.settings, self.programs = ranks, settings, programs
        self.as_given: list[str] = []  # the programs as `fit` was called with them
        self.as_begun: list[str] = []  # and as they were behind its checks, which complete what is made lazily
        self.epoch, self.step, self.batches, self.seconds = 1, 0, 0, 0.0
        self.totals = torch.zeros(4, dtype=torch.float64, device=device)  # of three terms and of the data
        self.order_state = order.get_state()
        self.best: tuple[float, Tensors] = math.inf, {}
        self.late: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}  # what the optimizer has of those not yet met

    def begin_epoch(self) -> None:
        """Go on to the next epoch."""
        self.epoch += 1
        self.batches, self.seconds = 0, 0.0
        self.totals.zero_()
        self.order_state = self.order.get_state()

    def count(self, terms: Sequence[Tensor], data: int | Tensor) -> None:
        """Add a step's terms, summed over so many data, to those of the epoch."""
        count = data.to(terms[0]) if isinstance(data, Tensor) else terms[0].new_full((), data)
        self.totals += torch.stack([*terms, count])

    def means(self) -> list[float]:
        """Return the epoch's mean terms per datum, NaN where no step counted."""
        return (self.totals[:3] / self.totals[3]).tolist()

    def values(self, *, strict: bool = False) -> dict[str, Tensor]:
        """Return the tensors that training changes in the programs, by name, no copies: buffers, too.

        Arguments:
            strict: refuse two parameters of one name; otherwise the one that was met last counts.

        Raises:
            ValueError: where two parameters have one name.
        """
        values: dict[str, Tensor] = {}
        for number, module in enumerate(self.modules):
            prefix = f"{number}." if len(self.modules) > 1 else ""
            values |= {f"parameter/{prefix}{name}": parameter for name, parameter in module.named_parameters()}
            values |= {f"buffer/{prefix}{name}": buffer for name, buffer in module.named_buffers()}
        known = set(map(id, values.values()))
        for name, parameter in zip(self.local.names, self.local.parameters, strict=True):
            if id(parameter) not in known:
                if strict and f"param/{name}" in values:
                    raise ValueError(f"two parameters of the programs are called {name!r}: give each a name of its own")
                values[f"param/{name}"] = parameter
        return values

    def keep_best(self) -> None:
        """Keep a copy of the programs where the last row's test loss is the lowest."""
        loss = self.history[-1]["test_loss"]
        if loss < self.best[0]:
            self.best = loss, {name: tensor.detach().clone() for name, tensor in self.values().items()}

    def save(self, optim: torch.optim.Optimizer) -> tuple[Tensors, dict[str, Any]]:
        """Return where the training stands, on every rank alike.

        Arguments:
            optim: the optimizer of all parameters that were met.

        Returns:
            Tensors by name, and plain values.

        Raises:
            TypeError: for an optimizer whose state holds something else.
            ValueError: for one that holds a parameter without a name.
        """
        values = self.values(strict=True)
        names = {id(value): name for name, value in reversed(values.items())}
        late = {f"param/{name}": value for name, (value, _) in self.local.saved.items()}
        tensors = values | late | _baselines() | {"order": self.order_state, "totals": self.totals}
        for rank, random in enumerate(self.ranks.gather(_random_state(self.device))):
            tensors[f"random/{rank}"] = random
        states = {_name(parameter, names): state for parameter, state in optim.state.items()}
        states |= {name: state for name, (_, state) in self.late.items()}
        plain: dict[str, dict[str, Any]] = {}
        for name, state in states.items():
            for key, value in state.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer/{name}/{key}"] = value
                else:
                    plain.setdefault(name, {})[key] = _plain(value, f"state {key!r}")
        groups = [settings_of(group, params=[_name(p, names) for p in group["params"]]) for group in optim.param_groups]
        groups += [group | {"params": [name]} for name, (group, _) in self.late.items()]
        about = {
            **{name: getattr(self, name) for name in ("epoch", "step", "batches", "seconds", "settings")},
            "history": list(self.history),
            "best": self.best[0],
            "optimizer": {"state": plain, "groups": groups},
            "constraints": self.local.constraints | {name: there for name, (_, there) in self.local.saved.items()},
            "frozen": self.frozen(),
            "programs": [*self.as_begun, *described_programs(self.programs, values)],
        }
        return tensors, about

    def frozen(self) -> list[str]:
        """Return the names of the parameters that are not trained."""
        values = self.values().items()
        return [name for name, value in values if not (name.startswith("buffer/") or value.requires_grad)]

    def load(self, tensors: Tensors, about: dict[str, Any], optim: torch.optim.Optimizer) -> None:
        """Take a checkpoint's place: programs, optimizer, random states, position and history.

        A parameter that the programs have not met yet takes its value, and its part of the optimizer, when they do.

        Arguments:
            tensors: what `save` returned.
            about: what it returned beside them.
            optim: the optimizer of the parameters met so far, new.

        Raises:
            ValueError: where the checkpoint is of another training, naming what differs.
        """
        check_settings_of(about["settings"], self.settings)
        values = self.values()
        self._check_values(tensors, about, values)
        count = len(self.programs)
        self._check_programs(about["programs"][:count], about["programs"][count:])
        if strange := [name for name in about["frozen"] if not (isinstance(name, str) and name in tensors)]:
            raise ValueError(f"cannot resume: the checkpoint has frozen={strange}, which are none of its parameters")
        random = {f"random/{rank}": _random_state(self.device) for rank in range(self.ranks.size)}
        check_tensors(tensors, {"order": self.order_state, "totals": self.totals, **random})
        check_random("order", tensors["order"], torch.device("cpu"))
        for name in random:
            check_random(name, tensors[name], self.device)
        for name, value in tensors.items():
            kind, _, own = name.partition("/")
            if kind == "param" and name not in values:
                self.local.saved[own] = value, about["constraints"].get(own, "")
            if kind == "baseline" and own.startswith(BASELINE):
                pyro.get_param_store()[own] = value.to(self.device)
        self._load_optimizer(tensors, about["optimizer"], values, optim)
        with torch.no_grad():
            for name, tensor in values.items():
                tensor.copy_(tensors[name])
                if not name.startswith("buffer/"):
                    tensor.requires_grad_(name not in about["frozen"])
        for name in ("epoch", "step", "batches", "seconds"):
            setattr(self, name, about[name])
        self.history[:] = about["history"]
        self.best = about["best"], {}
        self.totals = tensors["totals"].to(self.device)
        self.order_state = tensors["order"]
        self.order.set_state(self.order_state)
        _set_random_state(tensors[f"random/{self.ranks.rank}"], self.device)

    def _check_values(self, tensors: Tensors, about: dict[str, Any], values: Tensors) -> None:
        there = {name for name in tensors if name.partition("/")[0] in ("parameter", "buffer", "param")}
        late = {name for name in there if name.startswith("param/")}
        for names, holder, other in (
            (there - late - set(values), "the checkpoint", "the programs do"),
            (set(values) - there, "the programs", "the checkpoint does"),
        ):
            if names:
                raise ValueError(f"cannot resume: {holder} hold{'s' * (names <= there)} {min(names)}, and {other} not")
        for name, tensor in values.items():
            if tensors[name].shape != tensor.shape or tensors[name].dtype != tensor.dtype:
                sizes = " and ".join(f"{value.dtype} {tuple(value.shape)}" for value in (tensors[name], tensor))
                raise ValueError(f"the checkpoint's {name} and the programs' differ: {sizes}")
        met = {name.removeprefix("param/") for name in values}
        for name, here in self.local.constraints.items():
            if name in met and about["constraints"].get(name) != here:
                both = f"{about['constraints'].get(name)} there, and {here} here"
                raise ValueError(f"cannot resume: parameter {name!r} has constraint {both}")

    def _check_programs(self, first: list[str], last: list[str]) -> None:
        for number, name in enumerate(PROGRAMS):
            if self.as_given[number] == last[number]:  # such as the same objects, which hold what they held
                continue
            if self.as_begun[number] not in (first[number], last[number]):
                raise ValueError(
                    f"cannot resume: the {name} is not the checkpoint's: its code, or a value that it holds, differs"
                    " (all methods of its classes count, comments and layout do not): take back what has changed"
                )
            if first[number] != last[number]:
                warnings.warn(CHANGES.format(name), RuntimeWarning, stacklevel=4)
        self.as_begun = first

    def _load_optimizer(
        self, tensors: Tensors, saved: dict[str, Any], values: dict[str, Tensor], optim: torch.optim.Optimizer
    ) -> None:
        states: dict[str, dict[str, Any]] = {name: dict(state) for name, state in saved["state"].items()}
        for name, tensor in tensors.items():
            if name.startswith("optimizer/"):
                parameter_name, _, key = name.removeprefix("optimizer/").rpartition("/")
                states.setdefault(parameter_name, {})[key] = tensor
        names = {id(value): name for name, value in reversed(values.items())}
        here = {_name(parameter, names): parameter for group in optim.param_groups for parameter in group["params"]}
        there = [name for group in saved["groups"] for name in group["params"]]
        if not all(isinstance(name, str) for name in there) or len(set(there)) < len(there):
            raise ValueError("cannot resume: the checkpoint's optimizer names a parameter twice, or not by a text")
        if new := set(here) - set(there):
            raise ValueError(f"cannot resume: the checkpoint's optimizer does not train {min(new)}")
        if unknown := (set(states) - set(there)) | (set(there) - set(tensors)):
            raise ValueError(f"cannot resume: the checkpoint's optimizer/{min(unknown)} is of no parameter")
        order: list[str] = []
        groups: list[dict[str, Any]] = []
        like = {name: value for name, value in optim.param_groups[0].items() if name != "params"}
        optim.param_groups.clear()
        for group in saved["groups"]:
            met = [name for name in group["params"] if name in here]
            settings = {name: value for name, value in group.items() if name != "params"}
            own = {name: value for name, value in like.items() if name in settings or name != "initial_lr"}
            check_group(settings, own)
            self.late |= {name: (settings, states.get(name, {})) for name in group["params"] if name not in here}
            if met:
                groups.append(settings | {"params": list(range(len(order), len(order) + len(met)))})
                optim.param_groups.append(own | {"params": [here[name] for name in met]})
                order += met
        state = {number: states[name] for number, name in enumerate(order) if name in states}
        optim.load_state_dict(checked_state(optim, {"state": state, "param_groups": groups}))

    def add(self, parameters: Sequence[Tensor], optim: torch.optim.Optimizer) -> None:
        """Have an optimizer train parameters that the programs have met on the way."""
        names = {id(value): name for name, value in reversed(self.values().items())}
        for parameter in parameters:
            settings, state = self.late.pop(names[id(parameter)], ({}, {}))
            optim.add_param_group({**settings, "params": [parameter]})
            if state:
                alone = copy.copy(optim)  # an optimizer of this parameter
                alone.param_groups, alone.state = optim.param_groups[-1:], defaultdict(dict)
                checked_state(
                    alone, {"state": {0: state}, "param_groups": [settings_of(*alone.param_groups, params=[0])]}
                )
                optim.state[parameter] = {name: _moved(value, parameter) for name, value in state.items()}


def check_settings_of(there: dict[str, Any], here: dict[str, Any]) -> None:
    """Refuse a checkpoint of another training.

    Arguments:
        there: the settings that it was made with.
        here: those of the training that is to go on.

    Raises:
        ValueError: with the first one that differs.

    Example:
        >>> check_settings_of({"seed": 1}, {"seed": 0})
        Traceback (most recent call last):
        ...
        ValueError: cannot resume: the checkpoint has seed=1, this call has seed=0
    """
    for name, value in json.loads(json.dumps(here)).items():
        if there.get(name) != value:
            raise ValueError(
                f"cannot resume: the checkpoint has {name}={there.get(name)!r}, this call has {name}={value!r}"
            )


def settings_of(group: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return the settings of an optimizer's group, as plain values, and more.

    Example:
        >>> settings_of({"lr": torch.tensor(0.5), "betas": (0.9, 0.99), "params": []})
        {'lr': 0.5, 'betas': [0.9, 0.99]}
    """
    return {name: _plain(value, name) for name, value in group.items() if name != "params"} | more


def described(value: Any) -> Any:
    """Return a plain value as it is, and of anything else its name with a digest of all that it holds.

    Functions of the same name are told apart by their code, and by the values that they close over or read from their
    module.

    Example:
        >>> described(0.5), described(lambda x: 2 * x) == described(lambda x: 3 * x)
        (0.5, False)
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    inner = value.func if isinstance(value, partial) else value
    named = inner if hasattr(inner, "__name__") else type(inner)
    name = named.__qualname__ if isinstance(named, FunctionType | type) else named.__name__
    return f"{name} ({_Digest()(value)})"


def described_programs(programs: Sequence[Any], values: Tensors) -> list[str]:
    """Return a digest of all that each program computes with, but not of the values that training changes.

    Arguments:
        programs: Pyro programs.
        values: the tensors that training changes, by name, of which the names count alone.

    Returns:
        One text for each program.

    Example:
        >>> def program(scale):
        ...     return lambda x: scale * x
        >>> weight = torch.zeros(1)
        >>> first, = described_programs([program(weight)], {"weight": weight})
        >>> weight += 1
        >>> described_programs([program(weight)], {"weight": weight}) == [first]
        True
        >>> described_programs([program(2.0)], {}) == described_programs([program(3.0)], {})
        False
    """
    return [_Digest(values)(program) for program in programs]


class _Digest:
    """A digest of Python objects: their classes, code and all that they hold; of ``values``, only the names."""

    def __init__(self, values: Tensors | None = None) -> None:
        self._sum = hashlib.sha256()
        self._seen = {id(value): (name, value) for name, value in (values or {}).items()}  # which keeps them alive
        self._count = 0

    def __call__(self, value: Any) -> str:
        self._feed(value)
        return self._sum.hexdigest()[:12]

    def _feed(self, value: Any) -> None:
        value = None if isinstance(value, OPAQUE) else value
        if isinstance(value, PLAIN):
            self._add((repr(value) if not isinstance(value, ModuleType) else value.__name__).encode())
        elif id(value) in self._seen:
            self._add(f"the same as {self._seen[id(value)][0]}".encode())
        else:
            self._seen[id(value)] = f"number {self._count}", value  # so that no other object takes its identity
            self._count += 1
            if isinstance(value, Tensor | np.ndarray):
                self._feed_array(value)
            else:
                self._feed_object(value)

    def _feed_array(self, value: Tensor | np.ndarray) -> None:
        self._add(f"{value.dtype} {tuple(value.shape)}".encode())
        if isinstance(value, np.ndarray):
            self._add(np.ascontiguousarray(value).tobytes())
        elif value.layout is torch.strided:
            self._add(value.detach().cpu().resolve_conj().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        else:  # sparse
            entries = value.detach().to_sparse_coo().coalesce()
            self._feed([entries.indices(), entries.values()])

    def _feed_object(self, value: Any) -> None:
        inside = _inside(value)
        named = value if hasattr(value, "__qualname__") else type(value)
        module = getattr(named, "__module__", None)  # which methods of builtin types have not
        self._add(f"{type(value).__name__} {module}.{named.__qualname__} {len(inside)}".encode())
        for each in inside:
            self._feed(each)

    def _add(self, data: bytes) -> None:
        self._sum.update(f"{len(data)} ".encode() + data)  # so that 1 and 23 are not 12 and 3


def _inside(value: Any) -> list[Any]:
    """Return what a value consists of, for a digest of it."""
    if isinstance(value, FunctionType | nn.Module):  # perhaps of torch.compile, which changes no number
        for name, held in (("_torchdynamo_orig_callable", vars(value)), ("_orig_mod", vars(value).get("_modules", ()))):
            if name in held:
                return [held[name]]
    if type(value) in (dict, MappingProxyType):
        return [*value, *value.values()]
    if type(value) in (set, frozenset):
        return sorted(map(repr, value))
    if type(value) in (list, tuple):
        return list(value)
    if isinstance(value, CodeType):
        names = value.co_varnames[: value.co_argcount + value.co_kwonlyargcount]
        return [value.co_code, value.co_consts, value.co_names, names]
    if isinstance(value, FunctionType):
        parts = [value.__code__, value.__defaults__, value.__kwdefaults__, *map(held_in, value.__closure__ or ())]
        return [*parts, vars(value), *(read_globals(value) if root_of(value) not in TRUSTED else [])]
    if isinstance(value, MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, staticmethod | classmethod):
        return [value.__func__]
    if isinstance(value, property):
        return [value.fget]
    if isinstance(value, partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, type):
        return [*_of_class(value), *value.__bases__]
    return _state_of(value)


def _of_class(value: type) -> list[Any]:
    """Return what stands in a class; in a library's, the methods that others have put there."""
    own = [each for name, each in vars(value).items() if name not in ABOUT]
    if root_of(value) in TRUSTED:
        return [each for each in own if isinstance(each, FunctionType) and root_of(each) not in TRUSTED]
    return own


def _state_of(value: Any) -> list[Any]:
    """Return the attributes and the class of an object, or what it would be pickled as where these do not tell it."""
    if isinstance(value, BuiltinFunctionType):
        return [value.__self__]
    if isinstance(value, torch.Generator):
        return [value.get_state()]
    held = [getattr(value, name, None) for name in slots_of(value)]
    if hasattr(value, "__dict__"):
        told = {name: each for name, each in vars(value).items() if _tells(value, name)}
        # Hooks are known by numbers that count all hooks of the process.
        numbered = {name for name, each in told.items() if name.endswith("_hooks") and isinstance(each, dict)}
        held.append({name: [*each.values()] if name in numbered else each for name, each in told.items()})
    if not held or type(value).__reduce__ is not object.__reduce__ or isinstance(value, list | tuple | set | frozenset):
        with suppress(Exception):  # what cannot be pickled has no state that could be told
            _, *parts = value.__reduce_ex__(2)
            held += [list(each) if isinstance(each, Iterator) else each for each in parts]
    if isinstance(value, torch.jit.ScriptModule):
        held += _of_script(value)
    if isinstance(value, GraphModule):
        held.append(value.code)
    return [*held, type(value)]


def _of_script(module: torch.jit.ScriptModule) -> list[Any]:
    """Return what a scripted module has out of Python's sight: code, constants and attributes."""
    names = module._concrete_type.get_attributes() if "_concrete_type" in vars(module) else ()
    values = {name: getattr(module, name) for name in names if name != "training"}
    code, constants = module.code_with_constants if hasattr(module, "forward") else ("", None)
    return [code, constants and constants.const_mapping, values]


def _tells(value: Any, name: str) -> bool:
    """Whether an attribute says what an object computes: others of a library's are made on the way, or set by `fit`."""
    if isinstance(value, nn.Module) and (name in ("training", "prototype_trace") or name.startswith("_pyro")):
        return name in GIVEN
    if root_of(type(value)) not in TRUSTED:
        return True
    if isinstance(value, Distribution) and isinstance(getattr_static(type(value), name, None), lazy_property):
        whole = any(other.startswith(("_param", "_unbroadcasted", "_categorical")) for other in vars(value))
        return not whole or vars(value)[name] is vars(value).get("_param")  # such as the probabilities, if given
    if name == "_inv" or (isinstance(value, TraceMessenger) and name == "trace"):
        return isinstance(value, _InverseTransform)  # others note there what has been made of them, or their last run
    return not name.startswith(MADE)


def described_data(x: Rows | None) -> str | None:
    """Return the number, shape and digest of data; of a stream, which may change from pass to pass, no digest.

    Example:
        >>> described_data(torch.zeros(2, 3))
        '2 x (3,), sha256 9d908ecfb6b256de'
    """
    if x is None:
        return None
    size = f"{len(x)} x {tuple(x.shape[1:])}" + (f" / {x.scale}" if isinstance(x, EightBit) and x.scale != 1 else "")
    return size if isinstance(x, Stream) else f"{size}, sha256 {digest_of(x)}"


def _baselines() -> dict[str, Tensor]:
    """Return the running means that ``TraceGraph_ELBO`` keeps in Pyro's parameter store."""
    store = pyro.get_param_store()
    return {f"baseline/{name}": store[name] for name in store if name.startswith(BASELINE)}


def _name(parameter: Tensor, names: dict[int, str]) -> str:
    if id(parameter) not in names:
        shape = tuple(parameter.shape)
        raise ValueError(f"the optimizer holds a parameter of shape {shape} that the programs do not name")
    return names[id(parameter)]


def _moved(value: Any, parameter: Tensor) -> Any:
    return value.to(parameter.device) if isinstance(value, Tensor) and value.dim() else value


def _plain(value: Any, name: str) -> Any:
    if isinstance(value, Tensor) and value.dim() == 0:
        value = value.item()
    if isinstance(value, list | tuple):
        return [_plain(each, name) for each in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a checkpoint cannot hold the optimizer's {name}, a {type(value).__name__}: train without one")


def _random_state(device: torch.device) -> Tensor:
    cpu = torch.get_rng_state()
    return torch.cat([cpu, torch.cuda.get_rng_state(device)]) if device.type == "cuda" else cpu


def _set_random_state(state: Tensor, device: torch.device) -> None:
    size = len(torch.get_rng_state())
    torch.set_rng_state(state[:size])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[size:], device)
