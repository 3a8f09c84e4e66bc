"""The running means of ``TraceGraph_ELBO``, which Pyro 1.9 keeps in its global parameter store by the sites' names."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pyro
from torch import Tensor

BASELINE = "__baseline_"  # their names begin with this


def baselines() -> dict[str, Tensor]:
    """Return the running means by name. A step replaces them, and does not change them in place."""
    return {name: value for name, value in pyro.get_param_store().named_parameters() if name.startswith(BASELINE)}


def set_baselines(means: Mapping[str, Tensor]) -> None:
    """Let the store hold these running means, and no others."""
    store = pyro.get_param_store()
    forget_replaced()
    for name in baselines():
        del store[name]
    for name, value in means.items():
        store[name] = value.detach()


def forget_replaced() -> None:
    """Remove the means that later ones have replaced from the names of the store, which would grow with each step."""
    store = pyro.get_param_store()
    known = {id(value) for value in store._params.values()}
    for replaced in [value for value in store._param_to_name if id(value) not in known]:
        del store._param_to_name[replaced]


@contextmanager
def own_baselines() -> Iterator[None]:
    """Begin without running means, as those in the store are of other trainings, and put these back at the end."""
    others = baselines()
    set_baselines({})
    try:
        yield
    finally:
        set_baselines(others)
