"""Variational autoencoders as Pyro programs, beside their hand-coded twin.

The names below are imported when they are first used, so that ``pyro-vae --help`` does not wait for torch.
"""

import sys
from importlib import import_module
from importlib.machinery import ModuleSpec

TYPE_CHECKING = False  # typing's own would be imported before __main__ has taken the current folder off the path
if TYPE_CHECKING:
    from typing import Any

    from pyro_vae import (
        baseline,
        data,
        decoders,
        distributions,
        encoders,
        networks,
        objectives,
        plots,
        priors,
        programs,
        training,
        vae,
    )
    from pyro_vae.diagnostics import comparison, evaluation
    from pyro_vae.diagnostics import estimators as laboratory
    from pyro_vae.diagnostics.annealing import ais, bdmc
    from pyro_vae.diagnostics.calibration import calibration
    from pyro_vae.diagnostics.codes import codes
    from pyro_vae.diagnostics.comparison import compare
    from pyro_vae.diagnostics.estimators import gradients
    from pyro_vae.diagnostics.evaluation import Bound, evaluate
    from pyro_vae.diagnostics.gaps import inference_gap
    from pyro_vae.diagnostics.imputation import impute
    from pyro_vae.diagnostics.likelihood import log_likelihood
    from pyro_vae.diagnostics.local_test import local_test
    from pyro_vae.diagnostics.observed import on_observed
    from pyro_vae.diagnostics.posteriors import posterior_check
    from pyro_vae.diagnostics.predictive import predictive_check
    from pyro_vae.programs import handlers, noise
    from pyro_vae.training import History, fit
    from pyro_vae.vae import VAE

__version__ = "0.1.0"

__all__ = [
    "VAE",
    "Bound",
    "History",
    "__version__",
    "ais",
    "baseline",
    "bdmc",
    "calibration",
    "codes",
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
    "impute",
    "inference_gap",
    "laboratory",
    "local_test",
    "log_likelihood",
    "networks",
    "noise",
    "objectives",
    "on_observed",
    "plots",
    "posterior_check",
    "predictive_check",
    "priors",
    "programs",
    "training",
    "vae",
]

_HOMES = {
    "VAE": "vae",
    "fit": "training",
    "History": "training",
    "evaluate": "diagnostics.evaluation",
    "Bound": "diagnostics.evaluation",
    "log_likelihood": "diagnostics.likelihood",
    "ais": "diagnostics.annealing",
    "bdmc": "diagnostics.annealing",
    "calibration": "diagnostics.calibration",
    "codes": "diagnostics.codes",
    "inference_gap": "diagnostics.gaps",
    "impute": "diagnostics.imputation",
    "on_observed": "diagnostics.observed",
    "local_test": "diagnostics.local_test",
    "posterior_check": "diagnostics.posteriors",
    "predictive_check": "diagnostics.predictive",
    "compare": "diagnostics.comparison",
    "gradients": "diagnostics.estimators",
}
_MODULES = {
    "comparison": "diagnostics.comparison",
    "evaluation": "diagnostics.evaluation",
    "laboratory": "diagnostics.estimators",
    "handlers": "programs.handlers",
    "noise": "programs.noise",
}


def __getattr__(name: str) -> "Any":
    if name in _HOMES:
        return getattr(import_module(f"pyro_vae.{_HOMES[name]}"), name)
    if name in __all__:
        return import_module(f"pyro_vae.{_MODULES.get(name, name)}")
    raise AttributeError(f"module 'pyro_vae' has no attribute {name!r}")


class _Moved:
    """Lets ``import pyro_vae.noise`` find the module where it lies, ``pyro_vae.programs.noise``."""

    @classmethod
    def find_spec(cls, name: str, *_: "Any") -> "Any":
        """Answer for the public names of this package alone: another module may be called noise, too."""
        package, public = name.rpartition(".")[::2]
        loader: Any = cls
        return ModuleSpec(name, loader) if package == "pyro_vae" and public in _MODULES else None

    @staticmethod
    def create_module(spec: "Any") -> "Any":
        """Return the module that lies elsewhere."""
        module = import_module(f"pyro_vae.{_MODULES[spec.name.rpartition('.')[2]]}")
        spec.loader_state = module.__spec__
        return module

    @staticmethod
    def exec_module(module: "Any") -> None:
        """Give the module its own spec back, in place of the other name's; it has been run."""
        module.__spec__ = module.__spec__.loader_state


sys.meta_path.append(_Moved)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
