"""Distributions that Pyro lacks, or has in a form that loses digits."""

from pyro_vae.distributions import kl as _kl  # noqa: F401  (registers closed forms)
from pyro_vae.distributions.bernoulli import ContinuousBernoulli, GreyBernoulli
from pyro_vae.distributions.conditional_flow import ConditionalAutoregressive, ConditionalFlow, ConditionalPlanar
from pyro_vae.distributions.mixture import MixtureOfNormals
from pyro_vae.distributions.moments import mean_of
from pyro_vae.distributions.planar import Planar
from pyro_vae.distributions.score_function import ScoreFunction

__all__ = [
    "ConditionalAutoregressive",
    "ConditionalFlow",
    "ConditionalPlanar",
    "ContinuousBernoulli",
    "GreyBernoulli",
    "MixtureOfNormals",
    "Planar",
    "ScoreFunction",
    "mean_of",
]
