"""A VAE around any one part, and data that it can score."""

import copy

import torch
from torch import nn

from pyro_vae import VAE, decoders, encoders, priors
from pyro_vae.networks import MLP


class AtZero(nn.Module):
    """A prior on the support of an encoder: what a copy of it gives for a datum of zeros."""

    def __init__(self, encoder, shape):
        super().__init__()
        self.encoder, self.zeros = copy.deepcopy(encoder), torch.zeros(shape)

    def forward(self):
        return self.encoder(self.zeros.to(next(self.parameters()).dtype))


class Blind(nn.Module):
    """An encoder on the support of a prior: a copy of it, whatever the datum."""

    def __init__(self, prior):
        super().__init__()
        self.prior = copy.deepcopy(prior)

    def forward(self, x):
        return self.prior().expand(x.shape[:1])


def small(in_shape, out_shape):
    return MLP(in_shape, out_shape, hidden=(5,))


def of_parts(prior, encoder, decoder):
    """Return a VAE, whose prior and decoder a semi-amortized encoder then refines by."""
    if isinstance(encoder, encoders.SemiAmortized):
        encoder = encoders.SemiAmortized(encoder.encoder, prior, decoder, encoder.steps)
    return VAE(prior, encoder, decoder)


def vae_around(case, latent_dim=3, shape=(2, 4, 3), count=40):
    """Return a VAE in double precision with the part of a case, the others being plain, and data."""
    torch.manual_seed(0)
    part = case.make(latent_dim)
    code = case.event(latent_dim) if case.kind != "decoders" else (latent_dim,)
    prior, encoder = priors.Normal(latent_dim), encoders.Normal(shape, latent_dim, small)
    decoder = part if case.kind == "decoders" else decoders.Normal(code, shape, small)
    if case.kind == "priors":
        prior, encoder = part, part._encoder[0] if isinstance(part, priors.VampPrior) else Blind(part)
    elif case.kind == "encoders":
        on_all = (encoders.Delta, encoders.SemiAmortized)  # the copy of one refines by a prior of its own
        prior, encoder = prior if case.family in on_all else AtZero(part, shape), part
    vae = of_parts(prior, encoder, decoder).double()
    return vae, vae.decoder(torch.randn(count, *code, dtype=torch.float64)).sample().double()


def accepted(part, x):
    """Return the first of some versions of grey values that a decoder's distribution accepts: it knows its data."""
    support = part(torch.zeros(1, *part.latent_shape, dtype=next(part.parameters()).dtype)).support
    versions = [
        x,
        (x > 0.5).to(x.dtype),
        (15 * x).round(),
        x.clamp(0.02, 0.98),
        (255 * x).round() / 255,
        (2 * x).round(),
    ]
    return next(version for version in versions if support.check(version).all())
