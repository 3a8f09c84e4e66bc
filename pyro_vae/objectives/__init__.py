"""Objectives: those that Pyro lacks, and what training adds to them and to Pyro's own ELBOs.

Each is a ``pyro.infer.ELBO``: give it as ``loss=`` to `pyro_vae.fit` or to ``pyro.infer.SVI``.
"""

from pyro_vae.objectives._objective import Draws, Objective, Terms
from pyro_vae.objectives.bounds import BetaTC, FreeBits, InfoVAE, StickingTheLanding, Thermodynamic
from pyro_vae.objectives.importance import CIWAE, IWAE, MIWAE, PIWAE, VIMCO, DReG, Renyi
from pyro_vae.objectives.plates import DataPlates, data_plates, share_of
from pyro_vae.objectives.side_by_side import made_for, runs_side_by_side
from pyro_vae.objectives.terms import (
    Beta,
    check_beta,
    check_per_datum,
    is_theirs,
    kl,
    linear_warm_up,
    reconstruction,
    recording,
    terms_and_gradients,
    terms_of,
    trained_by,
    with_plates,
)

__all__ = [
    "CIWAE",
    "IWAE",
    "MIWAE",
    "PIWAE",
    "VIMCO",
    "Beta",
    "BetaTC",
    "DReG",
    "DataPlates",
    "Draws",
    "FreeBits",
    "InfoVAE",
    "Objective",
    "Renyi",
    "StickingTheLanding",
    "Terms",
    "Thermodynamic",
    "check_beta",
    "check_per_datum",
    "data_plates",
    "is_theirs",
    "kl",
    "linear_warm_up",
    "made_for",
    "reconstruction",
    "recording",
    "runs_side_by_side",
    "share_of",
    "terms_and_gradients",
    "terms_of",
    "trained_by",
    "with_plates",
]
