"""A linear-Gaussian VAE, which is probabilistic PCA: its likelihood and its posterior in closed form."""

import math
from dataclasses import dataclass
from functools import partial

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae import VAE, decoders, priors
from pyro_vae.networks import MLP


class Gaussian(nn.Module):
    """An encoder of normal posteriors whose mean is linear in x, and whose Cholesky factor is the same for all x."""

    def __init__(self, weight: Tensor, scale_tril: Tensor, offset: float) -> None:
        super().__init__()
        self.weight, self.scale_tril = nn.Parameter(weight), nn.Parameter(scale_tril)
        self.offset = offset

    def forward(self, x: Tensor) -> dist.MultivariateNormal:
        return dist.MultivariateNormal(x @ self.weight.mT + self.offset, scale_tril=self.scale_tril)


@dataclass
class ProbabilisticPCA:
    """A VAE, data from it, and what is exact: log p(x) of each datum, and the means and covariance of p(z|x)."""

    vae: VAE
    x: Tensor
    log_p: Tensor
    mean: Tensor
    covariance: Tensor


def probabilistic_pca(
    latent: int = 16, observed: int = 24, count: int = 50, factor: float = 1.0, offset: float = 0.0, scale: float = 0.5
) -> ProbabilisticPCA:
    """Return a linear-Gaussian VAE, whose encoder is the exact posterior but for a wider scale and a shifted mean.

    Reference:
        Tipping and Bishop, 1999, Probabilistic Principal Component Analysis, equations 3 to 8.
    """
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(observed, latent, generator=generator, dtype=torch.double) / math.sqrt(latent)
    x = torch.randn(count, latent, generator=generator, dtype=torch.double) @ weight.T
    x = x + scale * torch.randn(count, observed, generator=generator, dtype=torch.double)
    covariance = torch.linalg.inv(torch.eye(latent) + weight.T @ weight / scale**2)
    to_mean = covariance @ weight.T / scale**2
    encoder = Gaussian(to_mean, factor * torch.linalg.cholesky(covariance), offset)
    vae = VAE(priors.Normal(latent), encoder, decoders.Normal(latent, observed, partial(MLP, hidden=()), scale=scale))
    with torch.no_grad():
        linear = vae.double().decoder.network.layers[0]
        linear.weight.copy_(weight), linear.bias.zero_()
    marginal = dist.MultivariateNormal(
        torch.zeros(observed).double(), weight @ weight.T + scale**2 * torch.eye(observed)
    )
    return ProbabilisticPCA(vae, x, marginal.log_prob(x), x @ to_mean.T, covariance)


def in_a_plate(vae, size):
    """Return the programs of a VAE under a plate of a size, of which each batch is a part."""

    def model(x):
        with pyro.plate("data", size, subsample_size=len(x)):
            z = pyro.sample("z", vae.prior())
            pyro.sample("x", vae.decoder(z), obs=x)

    def guide(x):
        with pyro.plate("data", size, subsample_size=len(x)):
            pyro.sample("z", vae.encoder(x))

    return model, guide
