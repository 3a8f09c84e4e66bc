"""A progress bar for what takes minutes."""

import sys
from threading import RLock
from typing import Any


def bar(total: int, unit: str, *, shown: bool) -> Any:
    """Return a progress bar on the standard error stream, and a context; in a notebook, a notebook's bar.

    Arguments:
        total: the number of units.
        unit: what is counted, such as "data".
        shown: whether to show it.

    Returns:
        The bar, whose ``update`` takes the number of units that are done; the context closes it.

    Example:
        >>> with bar(10, "data", shown=False) as shown:
        ...     shown.update(10)
    """
    from tqdm.auto import tqdm

    interval = 0.1 if sys.stderr.isatty() else 10.0
    tqdm.set_lock(RLock())  # tqdm's own is shared by processes, and one that exits at once would leave it behind
    # Each update looks at the clock, so that tqdm needs no thread that watches the bar, and that would outlive it.
    unwatched = type("Bar", (tqdm,), {"monitor_interval": 0})
    how = {"unit": unit, "dynamic_ncols": True, "mininterval": interval, "miniters": 1}
    return unwatched(total=total, disable=not shown, **how)
