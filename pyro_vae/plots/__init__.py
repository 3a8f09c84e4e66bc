"""Figures: functions from arrays to a matplotlib ``Figure``. Nothing here trains, samples or shows a window.

Arrays are torch tensors, numpy arrays or nested lists. A datum of shape (h, w), (1, h, w) or (3, h, w) is a picture
with values in [0, 1], 0 black and 1 white; one of shape (d,), or of a single row or column, is drawn as a curve.
Figures follow the current rcParams and do not change them; pyplot is not imported. To see a figure, end a notebook
cell with it; to save it, call ``figure.savefig("figure.pdf")``, or `png` for its bytes.
"""

import contextlib
import os

with contextlib.chdir(os.path.dirname(__file__)):  # a matplotlibrc in the current folder may be unsafe
    import matplotlib  # noqa: F401 (for its settings)

from matplotlib.figure import Figure

from pyro_vae.plots.files import KINDS, as_file, png
from pyro_vae.plots.images import compare_samples, completions, decoded_grid, interpolation, reconstructions, samples
from pyro_vae.plots.latent import kl_per_dimension, latent_map, posterior_cloud, project
from pyro_vae.plots.posteriors import gaps, posterior_pairs, ranks
from pyro_vae.plots.training import curves
from pyro_vae.plots.variance import estimators, gradients, trajectory

__all__ = [
    "KINDS",
    "Figure",
    "as_file",
    "compare_samples",
    "completions",
    "curves",
    "decoded_grid",
    "estimators",
    "gaps",
    "gradients",
    "interpolation",
    "kl_per_dimension",
    "latent_map",
    "png",
    "posterior_cloud",
    "posterior_pairs",
    "project",
    "ranks",
    "reconstructions",
    "samples",
    "trajectory",
]
