"""Checks of single arguments, whose errors name the value received."""

import inspect
import math
from numbers import Real
from typing import Any

from torch import Tensor


def as_size(size: int, name: str = "size", least: float = 1) -> int:
    """Return a size, or refuse a value that is not one.

    Arguments:
        size: an integer.
        name: what the size is called in the error.
        least: smallest allowed value.

    Returns:
        The size.

    Raises:
        TypeError: if it is not an integer.
        ValueError: if it is too small, or larger than any dimension of a tensor can be.

    Example:
        >>> as_size(20)
        20
    """
    if isinstance(size, bool) or not isinstance(size, int):
        raise TypeError(f"{name} must be an integer, not {size!r}")
    if size < least:
        raise ValueError(f"{name} must be at least {least}, not {size!r}")
    if size >= 2**63:
        raise ValueError(f"{name} must be below 2^63, not {size!r}")
    return size


def as_function(value: Any, name: str, *taken: str) -> Any:
    """Return a function, or refuse a value that cannot be called.

    Arguments:
        value: a function, a class or any other callable.
        name: its name in the error.
        taken: what it will be called with, if that is known, in words.

    Returns:
        The value.

    Raises:
        TypeError: with the value received.

    Example:
        >>> as_function(3, "network")
        Traceback (most recent call last):
        ...
        TypeError: network must be a function or a class, not 3
    """
    if not callable(value):
        raise TypeError(f"{name} must be a function or a class, not {value!r}")
    try:
        # A decorator may give what it wraps other arguments than it takes itself.
        signature = inspect.signature(value, follow_wrapped=False)
    except (TypeError, ValueError):  # of a function that is compiled
        return value
    try:
        if taken:
            signature.bind(*taken)
    except TypeError as error:
        raise TypeError(f"{name} must be a function of {' and '.join(taken)} alone: {error}") from error
    return value


def as_flag(value: bool, name: str) -> bool:
    """Return a flag, or refuse a value that is neither True nor False, such as the text "false", which is true.

    Arguments:
        value: True or False.
        name: its name in the error.

    Returns:
        The flag.

    Raises:
        TypeError: with the value received.

    Example:
        >>> as_flag("false", "learned")
        Traceback (most recent call last):
        ...
        TypeError: learned must be True or False, not 'false'
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {value!r}")
    return value


def as_number(value: float, name: str) -> float:
    """Return a number as a float, or refuse a value that is not one. NaN and the infinities are numbers.

    Arguments:
        value: the number, or a tensor of one.
        name: what the number is called in the error.

    Returns:
        The number.

    Raises:
        TypeError, ValueError: with the value received.

    Example:
        >>> as_number(2, "beta")
        2.0
    """
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, not {value!r}")
    try:
        return float(value)
    except OverflowError as error:
        raise ValueError(f"{name} must be a number of 64 bits, not {value!r}") from error


def above(value: float, least: float, name: str) -> float:
    """Return a number that is above a bound and finite, or refuse it.

    Arguments:
        value: the number.
        least: the bound.
        name: what the number is called in the error.

    Returns:
        The number, as a float.

    Raises:
        TypeError: if it is not a number.
        ValueError: with the value received.

    Example:
        >>> above(2, 0, "the scale")
        2.0
    """
    number = as_number(value, name)
    if not least < number < math.inf:
        raise ValueError(f"{name} must be above {least:g} and finite, not {value!r}")
    return number


def held(value: float, least: float, name: str, low: float = 1e-30, high: float = 1e30) -> float:
    """Return a parameter of a distribution, or refuse one for which float32 cannot hold the results.

    Arguments:
        value: the parameter.
        least: the bound that it must be above.
        name: its name in the error.
        low: the smallest one that is accepted.
        high: the largest one.

    Returns:
        The parameter, as a float.

    Raises:
        TypeError: if it is not a number.
        ValueError: with the value received.

    Example:
        >>> held(2, 0, "the scale")
        2.0
    """
    number = above(value, least, name)
    if not low <= number <= high:
        raise ValueError(f"{name} must be from {low:.8g} to {high:g}, which 32 bits can hold, not {value!r}")
    return number
