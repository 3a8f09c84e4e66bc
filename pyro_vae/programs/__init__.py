"""Pairs of Pyro programs of the user: their modules, device and mode, and whether they fit the data."""

from pyro_vae.programs.calls import Transform, as_input, check_calls, takes, transformed
from pyro_vae.programs.checks import check_programs
from pyro_vae.programs.handlers import Program
from pyro_vae.programs.modules import mode, modules_of
from pyro_vae.programs.seeds import as_seed, seeded
from pyro_vae.programs.sites import check_points
from pyro_vae.programs.supports import accepts_nan, support_of
from pyro_vae.programs.traces import leaves_of, paired_traces

__all__ = [
    "Program",
    "Transform",
    "accepts_nan",
    "as_input",
    "as_seed",
    "check_calls",
    "check_points",
    "check_programs",
    "leaves_of",
    "mode",
    "modules_of",
    "paired_traces",
    "seeded",
    "support_of",
    "takes",
    "transformed",
]
