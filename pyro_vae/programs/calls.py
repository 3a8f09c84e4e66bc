"""How programs are called with the data."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from torch import nn

from pyro_vae.data import Columns, MemoryMapped, Ready, Rows, Stream, as_rows
from pyro_vae.data.arrays import check_counts, warn_of_rounding
from pyro_vae.data.batch import Batch, Count, arguments, count_of, in_words, tensors_of
from pyro_vae.data.rows import map_parts
from pyro_vae.programs.handlers import Program
from pyro_vae.programs.modules import modules_of

Transform = Callable[[Batch], Batch]
RESERVED = {"model", "guide", "particles", "dims"}  # names of arguments of Pyro's ELBOs and of this package's


def as_input(data: Any, *programs: Program, count: Count | None = None, transform: Transform | None = None) -> Rows:
    """Return data as rows, on the device and in the precision of the programs' modules.

    Arguments:
        data: data as `pyro_vae.data.as_rows` takes them. `EightBit`, `MemoryMapped` and ``IterableDataset`` are read
            one batch at a time.
        programs: the programs that are called with the data; if they have no modules, the data stay as they are.
        count: returns the number of data of a ready batch.
        transform: a function that is applied to a batch before the programs are called with it, or None.

    Returns:
        A floating-point tensor whose first dimension counts the data, or an object that reads such rows.

    Raises:
        TypeError: if the programs cannot be called with such data.

    Example:
        >>> as_input(torch.zeros(3, 2), nn.Linear(2, 2).double()).dtype
        torch.float64
    """
    with torch.random.fork_rng([]):  # the data may draw random numbers when they are read
        x = as_rows(data, lambda batch: all(takes(program, batch) for program in programs), count)
        if transform is None:
            check_calls(x[:1], *programs)
    parameters = [parameter for module in modules_of(*programs) for parameter in module.parameters()]
    dtypes = [parameter.dtype for parameter in parameters if parameter.is_floating_point()]
    if not parameters:
        return x
    dtype = (dtypes or [torch.get_default_dtype()])[0]
    with torch.random.fork_rng([]):
        shown = map_parts(_shown, x.parts if isinstance(x, Columns) else x)
    for part in tensors_of(shown):
        check_counts(part, dtype)
        warn_of_rounding(part, dtype)
    return x.to(parameters[0].device, dtype)


def _shown(rows: Rows) -> Batch:
    """Return data in their own precision: all that are in memory, evenly spaced rows of a file, the first of others."""
    if isinstance(rows, MemoryMapped):
        return rows.to(rows.device, torch.float64)[:: max(1, len(rows) // 1000)]
    return rows[:1000] if isinstance(rows, Ready | Stream) else rows


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
    except (TypeError, ValueError):  # a function that is not written in Python has no signature
        return inspect.signature(lambda *_, **__: None)


def check_calls(batch: Batch, *programs: Program) -> None:
    """Refuse a batch that programs cannot be called with.

    Arguments:
        batch: a batch of the data.
        programs: the model and the guide.

    Raises:
        TypeError: with the structure of the batch, and how to write the programs for it.

    Example:
        >>> check_calls({"y": 1}, lambda x: None)
        Traceback (most recent call last):
        ...
        TypeError: the model takes (x), but a batch is {y: 1}: write model(y) and guide(y), or give data for (x)
    """
    keys = set(batch if isinstance(batch, dict) else ())
    for key in keys:
        if not isinstance(key, str):
            raise TypeError(f"the keys of a batch must be names of the programs' arguments, such as 'x', not {key!r}")
    for name in RESERVED & keys:
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
    """Return data as the programs see them.

    Arguments:
        rows: any number of data.
        transform: a function that is applied to them, or None.
        count: returns the number of data.

    Returns:
        The same number of data.

    Raises:
        ValueError: if the transform returns more or fewer data, because all results are reported per datum.

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
