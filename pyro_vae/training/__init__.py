"""Training: `fit`, and the objects that it is made of."""

from pyro_vae.checkpoints import COLUMNS
from pyro_vae.training.checks import check_loss, check_settings
from pyro_vae.training.fit import fit
from pyro_vae.training.history import History, Row
from pyro_vae.training.loop import train
from pyro_vae.training.state import State
from pyro_vae.training.step import Step

__all__ = ["COLUMNS", "History", "Row", "State", "Step", "check_loss", "check_settings", "fit", "train"]
