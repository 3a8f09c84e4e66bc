"""Training: `fit`, and the objects that it is made of."""

from pyro_vae.runtime.checkpoints import COLUMNS
from pyro_vae.training import loggers
from pyro_vae.training.checks import check_loss, check_settings
from pyro_vae.training.fit import fit
from pyro_vae.training.history import History, Row
from pyro_vae.training.loop import StopTraining, train
from pyro_vae.training.optimizers import Groups
from pyro_vae.training.schedules import PerStep
from pyro_vae.training.state import State
from pyro_vae.training.step import Step

__all__ = [
    "COLUMNS",
    "Groups",
    "History",
    "PerStep",
    "Row",
    "State",
    "Step",
    "StopTraining",
    "check_loss",
    "check_settings",
    "fit",
    "loggers",
    "train",
]
