"""Watches what programs hold in Python, so that changes of it are noticed."""

import dis
import functools
import sys
import types
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

TRUSTED = {
    "pyro_vae",
    "torch",
    "pyro",
    "zuko",
    "functools",
    "collections",
    "enum",
    "builtins",
}  # packages whose code does the same at every step
LIBRARIES = {*sys.stdlib_module_names, "pyro", "pyro_vae", "torch"} - {"__main__"}
GLOBAL, ATTRIBUTE = ("LOAD_GLOBAL", "LOAD_NAME"), ("LOAD_ATTR", "LOAD_METHOD")  # names of Python's operations
MANY = 1000  # elements: for a longer list or array only the length is watched
PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size, types.ModuleType)
HOOKS = [each for name, each in vars(torch.nn.modules.module).items() if name.startswith("_global_")]  # on all modules


class Held:
    """What Python objects hold: all attributes, elements, closures and the globals that the user's functions read.

    A recording contains Python's numbers, and the choice of tensors, as they were when it was made. So it is only
    right as long as these do not change.

    Arguments:
        roots: the objects to begin with.

    Attributes:
        foreign: the first function or class found that is not of a package in `TRUSTED`, in words; it may do something
            else at every step. Empty if there is none.

    Example:
        >>> layer = torch.nn.Dropout(0.5)
        >>> held = Held(layer)
        >>> held.unchanged(), held.foreign
        (True, '')
        >>> layer.p = 0.1
        >>> held.unchanged()
        False
    """

    def __init__(self, *roots: Any) -> None:
        self.foreign = ""
        self._seen: dict[int, Any] = {}  # keeps all objects alive, so that their ids stay unique
        self._reads: list[tuple[Callable[[Any], Any], Any, Any]] = []
        self._empty: list[Any] = []  # empty containers, such as most dictionaries of a module, are checked together
        self._tensors: list[Tensor] = []
        waiting = [*roots, *HOOKS]
        while waiting:
            value = waiting.pop()
            if not isinstance(value, PLAIN) and id(value) not in self._seen:
                self._seen[id(value)] = value
                waiting += self._inside(value)
        self._flags = self._tensor_flags()

    def unchanged(self) -> bool:
        """Whether all objects hold what they held."""
        return (
            not any(self._empty)
            and all(read(container) == before for read, container, before in self._reads)
            and self._tensor_flags() == self._flags
        )

    def put_back(self) -> None:
        """Restore the content of dictionaries, lists, sets and closures; other objects cannot be restored."""
        for container in filter(len, self._empty):
            container.clear()
        for read, container, before in self._reads:
            if read(container) != before:
                self._fill(container, before)

    def _fill(self, container: Any, before: Any) -> None:
        if isinstance(container, dict):
            keys, values = before[: len(before) // 2], before[len(before) // 2 :]
            container.clear()
            container.update(zip(keys, map(self._seen.get, values), strict=True))
        elif isinstance(container, list | set | deque) and isinstance(before, list):
            container.clear()
            (container.update if isinstance(container, set) else container.extend)(map(self._seen.get, before))
        elif isinstance(container, types.CellType) and before:
            container.cell_contents = self._seen[before[0]]

    def _tensor_flags(self) -> list[Any]:
        return [(tensor.requires_grad, len(tensor._backward_hooks or ())) for tensor in self._tensors]

    def _inside(self, value: Any) -> list[Any]:
        """Watch an object, and return what it holds."""
        if isinstance(value, dict):
            return self._watch(_of_dict, value, list(value.values()))
        if isinstance(value, list | set | deque):
            return self._watch(_of_elements if len(value) <= MANY else len, value, list(value)[:MANY])
        if isinstance(value, tuple | frozenset):
            return list(value)
        if isinstance(value, np.ndarray):
            return self._watch(np.ndarray.tobytes if value.size <= MANY else len, value, [])
        if isinstance(value, types.CellType):
            return self._watch(lambda cell: _of_elements(held_in(cell)), value, held_in(value))
        if isinstance(value, types.MethodType):
            return [value.__self__, value.__func__]
        self._look_for_foreign(value)
        if isinstance(value, Tensor):
            self._tensors.append(value)
            return list((value._backward_hooks or {}).values())
        parts: list[Any] = [vars(value)] if hasattr(value, "__dict__") and not isinstance(value, type) else []
        if isinstance(value, functools.partial):
            return [*parts, value.func, value.args, value.keywords]
        if isinstance(value, types.FunctionType):
            if root_of(value) not in TRUSTED:
                parts += self._watch(_of_globals, value, [*read_globals(value).values()])
            return [*parts, value.__defaults__, value.__kwdefaults__, *(value.__closure__ or ())]
        return parts

    def _watch(self, read: Callable[[Any], Any], container: Any, inside: list[Any]) -> list[Any]:
        if read in (_of_dict, _of_elements) and not container:
            self._empty.append(container)
        else:
            self._reads.append((read, container, read(container)))
        self._seen |= {id(each): each for each in inside if isinstance(each, PLAIN)}
        return inside

    def _look_for_foreign(self, value: Any) -> None:
        described = value if isinstance(value, type | types.FunctionType) else type(value)
        for each in (described, *_methods_of(described)):  # a method may have been put on a class of torch
            if not self.foreign and root_of(each) not in TRUSTED:
                kind = "function" if isinstance(each, types.FunctionType) else "class"
                self.foreign = f"the {kind} {each.__qualname__} of {each.__module__}"


def slots_of(value: Any) -> list[str]:
    """Return the names of an object's slots.

    Example:
        >>> slots_of(1), slots_of(type("Point", (), {"__slots__": ("x", "y")})())
        ([], ['x', 'y'])
    """
    slots = [vars(cls).get("__slots__", ()) for cls in type(value).__mro__]
    names = [name for each in slots for name in ([each] if isinstance(each, str) else each)]
    return [name for name in names if not name.startswith("__")]


def _methods_of(described: Any) -> list[types.FunctionType]:
    classes = [cls for cls in getattr(described, "__mro__", ()) if root_of(cls) in TRUSTED]
    return [each for cls in classes for each in vars(cls).values() if isinstance(each, types.FunctionType)]


def root_of(described: Any) -> str:
    """Return the name of the package that defines a function or class."""
    return str(getattr(described, "__module__", None) or "builtins").partition(".")[0]


def _of_dict(value: dict[Any, Any]) -> list[Any]:
    return [*value, *map(id, value.values())]


def _of_globals(function: types.FunctionType) -> list[int]:
    return _of_elements(read_globals(function).values())


def _of_elements(value: Any) -> list[int]:
    return list(map(id, value))


def held_in(cell: Any) -> list[Any]:
    """Return the content of a closure's cell in a list, which is empty if the cell is."""
    try:
        return [cell.cell_contents]
    except ValueError:  # the cell is still empty
        return []


def read_globals(function: types.FunctionType) -> dict[str, Any]:
    """Return the values of the globals that a function reads, in its own module and in others of the user, by name.

    Example:
        >>> def area(circle):
        ...     return pi * circle.radius**2
        >>> pi, radius = 3.0, 1.0
        >>> read_globals(area)  # radius is an attribute
        {'pi': 3.0}
    """
    values, code = function.__globals__, function.__code__
    read = {name: values[name] for name in _names(code, GLOBAL) if name in values}
    modules = _own_modules(read)
    for module in modules:  # the list grows while modules are found within modules
        held = {
            f"{module.__name__}.{name}": vars(module)[name] for name in _names(code, ATTRIBUTE) if name in vars(module)
        }
        read |= held
        modules += [each for each in _own_modules(held) if each not in modules]
    return read


def _own_modules(values: dict[str, Any]) -> list[types.ModuleType]:
    return [each for each in values.values() if isinstance(each, types.ModuleType) and not of_library(each.__name__)]


def of_library(module: str) -> bool:
    """Whether a module, given by its name, belongs to Python or to an installed package, and not to the user.

    Example:
        >>> of_library("math"), of_library("torch.nn"), of_library("theirs")
        (True, True, False)
    """
    file = getattr(sys.modules.get(module), "__file__", None) or ""
    return module.partition(".")[0] in LIBRARIES or "site-packages" in file or "dist-packages" in file


@functools.lru_cache(10_000)  # a recording asks at every step
def _names(code: types.CodeType, operations: tuple[str, ...]) -> list[str]:
    """Return the names that a function's code, and the code within it, looks up by some operations."""
    names = {each.argval for each in dis.get_instructions(code) if each.opname in operations}
    within = [_names(each, operations) for each in code.co_consts if isinstance(each, types.CodeType)]
    return sorted(names.union(*within))
