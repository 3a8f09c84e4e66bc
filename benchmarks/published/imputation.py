"""Imputation on the breast cancer data of scikit-learn, half of whose entries are missing.

No flag says that scale and degrees of freedom of a Student's t distribution are outputs of the network.
"""

from functools import partial

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer
from torch import nn
from torch.nn.functional import softplus

from benchmarks.published.recipe import Recipe
from pyro_vae import VAE, decoders, distributions, priors
from pyro_vae.networks import MLP, FillMissing
from pyro_vae.objectives import IWAE

ENTRIES, LATENT_DIM, EPOCHS = 30, 10, 1001
NETWORK = partial(MLP, hidden=(128, 128))


def student_t(output, floor):
    """Return a Student's t distribution of a network's output, (..., 3, D)."""
    loc, scale, df = output.unbind(-2)
    return distributions.StudentT(3 + softplus(df), loc, floor + softplus(scale)).to_event(1)


class Encoder(nn.Module):
    """q(z|x) of the observed entries; the missing ones are 0, their mean."""

    def __init__(self):
        super().__init__()
        self.network = FillMissing(ENTRIES, (3, LATENT_DIM), NETWORK)

    def forward(self, x):
        return student_t(self.network(x), 0.0)


class Decoder(nn.Module):
    """p(x|z), whose scale is at least 0.001, since a table of few data has a density without a bound otherwise."""

    def __init__(self):
        super().__init__()
        self.network = NETWORK(LATENT_DIM, (3, ENTRIES))

    def forward(self, z):
        return student_t(self.network(z), 1e-3)


def incomplete_and_complete():
    """Return the standardized data without half of their entries, and with all, of shape (569, 2, 30)."""
    x = load_breast_cancer().data
    x = (x - x.mean(0)) / x.std(0)
    np.random.seed(1234)
    incomplete = x.flatten()
    incomplete[np.random.choice(x.size, x.size // 2, replace=False)] = np.nan
    return torch.tensor(np.stack([incomplete.reshape(x.shape), x], 1), dtype=torch.float32)


def recipe(load, epochs=None, seed=None):  # noqa: ARG001 (they come with scikit-learn)
    seed, both = seed or 0, incomplete_and_complete()
    torch.manual_seed(seed)
    vae = VAE(priors.Normal(LATENT_DIM), Encoder(), decoders.Masked(Decoder()))
    settings = {
        "loss": IWAE(20),
        "optimizer": partial(torch.optim.Adam, lr=2e-4, fused=True),
        **{"batch_size": 32, "engine": "recorded", "epochs": epochs or EPOCHS, "seed": seed},
    }
    return Recipe(vae.model, vae.guide, both[:, 0], both, epochs or EPOCHS, settings)
