"""The modules that programs run, and their mode."""

from collections.abc import Iterator
from contextlib import contextmanager
from dis import get_instructions
from functools import cache, partial
from types import CellType, CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
from pyro import poutine
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from pyro_vae.networks._part import in_mode
from pyro_vae.programs.handlers import Program
from pyro_vae.runtime.held import of_library, slots_of

PLAIN = int | float | complex | str | bytes | Tensor | np.ndarray | None  # hold nothing


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
def reached(*programs: Program) -> Iterator[None]:
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


@contextmanager
def mode(training: bool, *programs: Program) -> Iterator[None]:
    """Put the programs' modules (dropout, batch normalization) in training or evaluation mode, and back."""
    with in_mode(training, [module for owner in modules_of(*programs) for module in owner.modules()]):
        yield
