"""A progress bar for what takes minutes."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def bar(total: int, unit: str, *, shown: bool) -> Iterator[Any]:
    """Show a progress bar on the standard error stream; in a notebook, a notebook's bar.

    Arguments:
        total: the number of units.
        unit: what is counted, such as "data".
        shown: whether to show it.

    Yields:
        The bar, whose ``update`` takes the number of units that are done.

    Example:
        >>> with bar(10, "data", shown=False) as shown:
        ...     shown.update(10)
    """
    from tqdm.auto import tqdm

    with tqdm(total=total, unit=unit, dynamic_ncols=True, leave=sys.stderr.isatty(), disable=not shown) as shown_bar:
        yield shown_bar
