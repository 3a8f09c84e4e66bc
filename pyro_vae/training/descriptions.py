"""Descriptions and digests of what a training depends on, so that a resumed training can be compared with it."""

import dis
import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from inspect import getattr_static
from logging import Logger
from pathlib import PurePath
from types import BuiltinFunctionType, CodeType, FunctionType, MappingProxyType, MethodType, ModuleType
from typing import Any
from weakref import ReferenceType

import numpy as np
import torch
from pyro.infer import ELBO
from pyro.params.param_store import ParamStoreDict
from pyro.poutine.trace_messenger import TraceMessenger
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.distributions.transforms import _InverseTransform
from torch.distributions.utils import lazy_property
from torch.fx import GraphModule

from pyro_vae.data import Columns, EightBit, Ready, Rows, Stream, digest_of
from pyro_vae.data.batch import in_words
from pyro_vae.data.fingerprints import bytes_of
from pyro_vae.objectives import Objective
from pyro_vae.runtime.checkpoints import Tensors
from pyro_vae.runtime.held import PLAIN, TRUSTED, held_in, read_globals, root_of, slots_of

OPAQUE = (ReferenceType, ParamStoreDict, Logger)  # a run makes and changes them, and they change no number
MADE = ("_cached", "_last", "_drawn", "_used", "_indices", "_intervener_id")  # prefixes of what library objects cache
# Attributes of classes that say nothing about what they compute (copying an object adds "__slotnames__").
ABOUT = (
    *("__doc__", "__annotations__", "__dict__", "__weakref__"),
    *("__slotnames__", "__firstlineno__", "__static_attributes__"),
)
ADDRESS = re.compile(" at 0x[0-9a-f]+")  # of an object, in how Python shows it
NUMBERED = {*dis.hasconst, *dis.hasname}  # operations that refer to a constant or a name by its index in the function
NAMED = 3  # names: what is held deeper is known by the name of what holds it
GIVEN = ("_pyro_samples", "_pyro_params")  # set by the user of a PyroModule; other "_pyro" attributes are its own notes


def described(value: Any) -> Any:
    """Return a plain value as it is, and for anything else its name with a digest of all that it holds.

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
    """Return a digest of the code of each program and all that it holds, except the values that training changes.

    Arguments:
        programs: Pyro programs.
        values: the tensors that training changes, by name; only the names count.

    Returns:
        One digest for each program.

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


def parts_of(programs: Sequence[Any], values: Tensors) -> list[dict[str, str]]:
    """Return digests of what each program holds, by the names of attributes, closures and globals, inner ones first.

    Arguments:
        programs: Pyro programs.
        values: as in `described_programs`.

    Example:
        >>> class Mine:
        ...     def __init__(self):
        ...         self.scale, self.started = 1.0, 5
        ...     def __call__(self, x):
        ...         return self.scale * x
        >>> [sorted(parts) for parts in parts_of([Mine()], {})]
        [['scale', 'started']]
    """
    digests = [_Digest(values) for _ in programs]
    for digest, program in zip(digests, programs, strict=True):
        digest(program)
    return [digest.parts for digest in digests]


class _Digest:
    """A digest of Python objects: their classes, code and all that they hold; of the ``values`` only the names.

    Attributes:
        parts: digests of what is held under a name.
    """

    def __init__(self, values: Tensors | None = None) -> None:
        self._sum = hashlib.sha256()
        self._seen = {id(value): (name, value) for name, value in (values or {}).items()}  # which keeps them alive
        self._trained = set(self._seen)
        self._count = 0
        self.parts: dict[str, str] = {}
        self._path: list[str] = []

    def __call__(self, value: Any) -> str:
        self._feed(value)
        return self._sum.hexdigest()[:12]

    def _feed(self, value: Any) -> None:
        value = None if isinstance(value, OPAQUE) else value
        value = value.type if isinstance(value, torch.device) else value  # of a GPU another one will do
        value = str(value) if isinstance(value, PurePath) else value  # an object of its class keeps hashes, too
        if isinstance(value, PLAIN):
            self._add((repr(value) if not isinstance(value, ModuleType) else value.__name__).encode())
        elif id(value) in self._seen:
            self._add(f"the same as {self._seen[id(value)][0]}".encode())
        else:
            self._seen[id(value)] = f"number {self._count}", value  # kept, so that no other object gets the same id
            self._count += 1
            if isinstance(value, Tensor | np.ndarray):
                self._feed_array(value)
            else:
                self._feed_object(value)

    def _feed_array(self, value: Tensor | np.ndarray) -> None:
        self._add(f"{value.dtype} {tuple(value.shape)}".encode())
        if isinstance(value, np.ndarray):
            self._add(np.ascontiguousarray(value).tobytes())
        elif value.is_meta:  # it has no values
            return
        elif value.layout is torch.strided:
            self._add(bytes(bytes_of(value)))
        else:  # sparse
            entries = value.detach().to_sparse_coo().coalesce()
            self._feed([entries.indices(), entries.values()])

    def _feed_object(self, value: Any) -> None:
        inside = _inside(value)
        if isinstance(value, nn.Module):  # a buffer that is None may get a value in training
            buffers = vars(value).get("_buffers", {}).items()
            own = {name: each for name, each in buffers if each is not None and id(each) not in self._trained}
            inside = [*inside, own]
        named = value if hasattr(value, "__qualname__") else type(value)
        module = getattr(named, "__module__", None)  # which methods of builtin types have not
        self._add(f"{type(value).__name__} {module}.{named.__qualname__} {len(inside)}".encode())
        if isinstance(inside, dict):
            self._feed_items(inside)
        else:
            for each in inside:
                self._feed(each)

    def _feed_items(self, items: dict[Any, Any]) -> None:
        for key, value in items.items():
            self._feed(key)
            named = [key] if isinstance(key, str) and not key.startswith("_") else []
            self._path += named
            whole, self._sum = self._sum, hashlib.sha256()
            self._feed(value)
            digest, self._sum = self._sum.hexdigest()[:12], whole
            self._add(digest.encode())
            if named:
                if len(self._path) <= NAMED:
                    self.parts[".".join(self._path)] = digest
                self._path.pop()

    def _add(self, data: bytes) -> None:
        self._sum.update(f"{len(data)} ".encode() + data)  # so that 1 and 23 are not 12 and 3


def _inside(value: Any) -> list[Any] | dict[Any, Any]:
    """Return the parts of a value, for a digest of it."""
    if isinstance(value, FunctionType | nn.Module):  # torch.compile's wrapper changes no number: look inside
        for name, held in (("_torchdynamo_orig_callable", vars(value)), ("_orig_mod", vars(value).get("_modules", ()))):
            if name in held:
                return [held[name]]
    if type(value) in (dict, MappingProxyType):
        return dict(value)
    if type(value) in (set, frozenset):
        return sorted(ADDRESS.sub("", repr(each)) for each in value)
    if type(value) in (list, tuple):
        return list(value)
    if isinstance(value, CodeType):
        operations, told = _of_code(value)
        names = value.co_varnames[: value.co_argcount + value.co_kwonlyargcount]
        return [operations, list(told), names]
    if isinstance(value, FunctionType):
        closed = dict(zip(value.__code__.co_freevars, map(held_in, value.__closure__ or ()), strict=True))
        parts = [value.__code__, value.__defaults__, value.__kwdefaults__, closed]
        return [*parts, vars(value), read_globals(value) if root_of(value) not in TRUSTED else {}]
    if isinstance(value, MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, staticmethod | classmethod):
        return [value.__func__]
    if isinstance(value, property):
        return [value.fget]
    if isinstance(value, partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, type):
        return [_of_class(value), *value.__bases__]
    return _state_of(value)


@lru_cache(10_000)
def _of_code(code: CodeType) -> tuple[str, tuple[Any, ...]]:
    """Return the operations of a function, and the constants and names that they use; not its docstring."""
    said = [step for step in dis.get_instructions(code) if step.opname not in ("EXTENDED_ARG", "NOP")]
    steps = [(step, step.opcode in NUMBERED) for step in said]
    operations = [(step.opname, None if numbered else step.arg) for step, numbered in steps]
    return repr(operations), tuple(step.argval for step, numbered in steps if numbered)


def _of_class(value: type) -> dict[str, Any]:
    """Return the attributes of a class; for a library's class only methods that other code has put there."""
    own = {name: each for name, each in vars(value).items() if name not in ABOUT}
    if root_of(value) in TRUSTED:
        methods = {name: each for name, each in own.items() if isinstance(each, FunctionType)}
        return {name: each for name, each in methods.items() if root_of(each) not in TRUSTED}
    return own


def _state_of(value: Any) -> list[Any]:
    """Return the attributes and the class of an object, or its pickled form if the attributes are not enough."""
    if isinstance(value, BuiltinFunctionType):
        return [value.__self__]
    if isinstance(value, torch.Generator):
        return [value.get_state()]
    held = [getattr(value, name, None) for name in slots_of(value)]
    if hasattr(value, "__dict__"):
        told = {name: each for name, each in vars(value).items() if _tells(value, name)}
        # The keys of hooks count all hooks of the process, so only the hooks are compared.
        numbered = {name for name, each in told.items() if name.endswith("_hooks") and isinstance(each, dict)}
        held.append({name: [*each.values()] if name in numbered else each for name, each in told.items()})
    if not held or type(value).__reduce__ is not object.__reduce__ or isinstance(value, list | tuple | set | frozenset):
        with suppress(Exception):  # an object that cannot be pickled has no state to compare
            _, *parts = value.__reduce_ex__(2)
            held += [list(each) if isinstance(each, Iterator) else each for each in parts]
    if isinstance(value, torch.jit.ScriptModule):
        held += _of_script(value)
    if isinstance(value, GraphModule):
        held.append(value.code)
    return [*held, type(value)]


def _of_script(module: torch.jit.ScriptModule) -> list[Any]:
    """Return what a scripted module does not hold in Python: code, constants and attributes."""
    names = module._concrete_type.get_attributes() if "_concrete_type" in vars(module) else ()
    values = {name: getattr(module, name) for name in names if name != "training"}
    code, constants = module.code_with_constants if hasattr(module, "forward") else ("", None)
    return [code, constants and constants.const_mapping, values]


def _tells(value: Any, name: str) -> bool:
    """Whether an attribute affects what an object computes; a library's caches, and what `fit` sets, do not."""
    if isinstance(value, nn.Module) and (
        name in ("training", "prototype_trace", "_buffers") or name.startswith("_pyro")
    ):
        return name in GIVEN
    if root_of(type(value)) not in TRUSTED:
        return True
    if isinstance(value, Distribution) and isinstance(getattr_static(type(value), name, None), lazy_property):
        whole = any(other.startswith(("_param", "_unbroadcasted", "_categorical")) for other in vars(value))
        return not whole or vars(value)[name] is vars(value).get("_param")  # such as the probabilities, if given
    if name == "_inv" or (isinstance(value, TraceMessenger) and name == "trace"):
        return isinstance(value, _InverseTransform)  # for other objects it is a cache, or their last run
    return not name.startswith(MADE)


def described_data(x: Rows | None) -> str | None:
    """Return the number, shape and digest of data; no digest for a stream, which may change from pass to pass.

    Example:
        >>> described_data(torch.zeros(2, 3))
        '2 x (3,), sha256 9d908ecfb6b256de'
    """
    if x is None:
        return None
    size = f"{len(x)} x {tuple(x.shape[1:])}" + (f" / {x.scale}" if isinstance(x, EightBit) and x.scale != 1 else "")
    if isinstance(x, Columns | Ready):
        size = f"{len(x)} x {in_words(x[:1])}"
    return size if isinstance(x, Stream | Ready) else f"{size}, sha256 {digest_of(x)}"


def described_loss(loss: ELBO) -> str:
    """Return the name of an objective, with its settings or a digest of them."""
    name = type(loss).__name__
    if isinstance(loss, Objective) and root_of(type(loss)) in TRUSTED:
        return repr(loss)
    return f"{name}({loss.num_particles}) {described(loss).removeprefix(f'{type(loss).__qualname__} ')}"
