"""Variational autoencoders as Pyro programs, beside their hand-coded twin.

The names below are imported when they are first used, so that ``pyro-vae --help`` does not wait for torch.
"""

from importlib import import_module

TYPE_CHECKING = False  # typing's own would be imported before __main__ has taken the current folder off the path
if TYPE_CHECKING:
    from typing import Any

    from pyro_vae import (
        baseline,
        comparison,
        data,
        decoders,
        distributions,
        encoders,
        evaluation,
        handlers,
        laboratory,
        networks,
        noise,
        objectives,
        plots,
        priors,
        programs,
        training,
        vae,
    )
    from pyro_vae.comparison import compare
    from pyro_vae.evaluation import Bound, evaluate, log_likelihood
    from pyro_vae.laboratory import gradients
    from pyro_vae.training import History, fit
    from pyro_vae.vae import VAE

__version__ = "0.1.0"

__all__ = [
    "VAE",
    "Bound",
    "History",
    "__version__",
    "baseline",
    "compare",
    "comparison",
    "data",
    "decoders",
    "distributions",
    "encoders",
    "evaluate",
    "evaluation",
    "fit",
    "gradients",
    "handlers",
    "laboratory",
    "log_likelihood",
    "networks",
    "noise",
    "objectives",
    "plots",
    "priors",
    "programs",
    "training",
    "vae",
]

_HOMES = {
    "VAE": "vae",
    "fit": "training",
    "History": "training",
    "evaluate": "evaluation",
    "Bound": "evaluation",
    "log_likelihood": "evaluation",
    "compare": "comparison",
    "gradients": "laboratory",
}


def __getattr__(name: str) -> "Any":
    if name in _HOMES:
        return getattr(import_module(f"pyro_vae.{_HOMES[name]}"), name)
    if name in __all__:
        return import_module(f"pyro_vae.{name}")
    raise AttributeError(f"module 'pyro_vae' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
