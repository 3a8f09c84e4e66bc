"""The modules that programs hold, and their mode."""

from collections.abc import Iterator
from contextlib import contextmanager
from dis import get_instructions
from functools import cache, partial
from types import CellType, CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
from pyro import poutine
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.modules.module import register_module_forward_pre_hook

from pyro_vae.networks._part import in_mode
from pyro_vae.programs.handlers import Program
from pyro_vae.runtime.held import of_library, slots_of

PLAIN = int | float | complex | str | bytes | None  # cannot hold a module or a tensor


def modules_of(*programs: Program) -> list[nn.Module]:
    """Return the modules that programs hold, without those that are within another one.

    A module is found if the program is the module or a method of it, or has it in its closure, its defaults, its
    arguments (``functools.partial``), among the globals that it names, or in an object of any of these.

    Arguments:
        programs: Pyro programs.

    Returns:
        The modules, in the order in which they are found.

    Example:
        >>> modules_of(partial(nn.Linear(2, 3), bias=None))
        [Linear(in_features=2, out_features=3, bias=True)]
    """
    found = {id(value): value for value in _reachable(*programs) if isinstance(value, nn.Module)}
    within = {id(module) for owner in found.values() for module in owner.modules() if module is not owner}
    return [module for key, module in found.items() if key not in within]


def hold_longer(count: int, *programs: Program) -> bool:
    """Whether programs hold a tensor, an array or a list, apart from parameters, with more entries than ``count``.

    Example:
        >>> import torch
        >>> labels = torch.zeros(60)
        >>> hold_longer(50, partial(print, labels)), hold_longer(60, partial(print, labels))
        (True, False)
    """
    tables = [each for each in _reachable(*programs) if isinstance(each, Tensor | np.ndarray | list | tuple)]
    sized = [each for each in tables if not isinstance(each, nn.Parameter) and getattr(each, "shape", None) != ()]
    return any(len(each) > count for each in sized)


def _reachable(*programs: Program) -> list[Any]:
    """Return all objects that programs can reach, in the order in which they are found."""
    seen: dict[int, Any] = {}  # keeps temporary objects alive, so that ids stay unique
    waiting = [poutine.unwrap(program) for program in reversed(programs)]
    while waiting:
        value = waiting.pop()
        if id(value) not in seen:
            seen[id(value)] = value
            waiting.extend(reversed(_held(value)))
    return list(seen.values())


def _held(value: Any) -> list[Any]:
    """Return the objects that a program can reach through a value."""
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
    """Whether a function or a class is of a library, and so cannot name a module of the user."""
    return of_library(str(getattr(value, "__module__", "")))


def _closure(function: FunctionType) -> list[Any]:
    cells = [cell.cell_contents for cell in function.__closure__ or () if cell != CellType()]
    named = [function.__globals__[name] for name in _globals_of(function.__code__) if name in function.__globals__]
    return [*cells, *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values(), *named]


@cache
def _globals_of(code: CodeType) -> list[str]:
    """Return the names of the globals that code reads, including the code of functions within it."""
    within = [name for constant in code.co_consts if isinstance(constant, CodeType) for name in _globals_of(constant)]
    return [step.argval for step in get_instructions(code) if step.opname == "LOAD_GLOBAL"] + within


@contextmanager
def reached(*programs: Program) -> Iterator[None]:
    """Refuse a module with a mode or buffers that programs call, but that `modules_of` does not find."""
    known: set[int] = set()

    def look(module: nn.Module, _: Any) -> None:
        if id(module) not in known:  # it may be new
            known.update(id(module) for owner in modules_of(*programs) for module in owner.modules())
        compiled = isinstance(module, GraphModule)  # by torch.compile, from a module that is known
        if id(module) not in known and not compiled and depends_on_mode(module):
            raise TypeError(
                f"the programs call a module, {type(module).__name__}, that is not found from them, so its mode and"
                " buffers would be ignored: make them methods of a module that holds it, or hold it in a closure"
            )

    hook = register_module_forward_pre_hook(look)
    try:
        yield
    finally:
        hook.remove()


def depends_on_mode(module: nn.Module) -> bool:
    """Whether a module may behave differently in training than in evaluation, or has buffers."""
    methods = [each for cls in type(module).__mro__ if cls is not nn.Module for each in vars(cls).values()]
    reads = any("training" in method.__code__.co_names for method in methods if isinstance(method, FunctionType))
    buffers = next(module.buffers(recurse=False), None) is not None
    return buffers or bool(getattr(module, "dropout", 0)) or reads


@contextmanager
def mode(training: bool, *programs: Program) -> Iterator[None]:
    """Put the programs' modules (dropout, batch normalization) in training or evaluation mode, and back."""
    with in_mode(training, [module for owner in modules_of(*programs) for module in owner.modules()]):
        yield
