"""Training a linear-Gaussian VAE, whose best parameters and likelihood are those of probabilistic PCA."""

import math
from functools import partial

import pytest
import torch
from pyro.infer import TraceMeanField_ELBO

from pyro_vae import VAE, decoders, encoders, evaluate, fit, log_likelihood, priors
from pyro_vae.networks import MLP

LATENT, OBSERVED, COUNT = 2, 5, 2000


def data():
    generator = torch.Generator().manual_seed(0)
    weight = torch.tensor([[2.0, 0.0], [0.0, 1.5], [1.0, 1.0], [0.5, -1.0], [0.0, 0.3]])
    z = torch.randn(COUNT, LATENT, generator=generator)
    return z @ weight.T + 0.7 * torch.randn(COUNT, OBSERVED, generator=generator) + 1


def best_likelihood(x):
    r"""The largest mean log p(x) and the noise's scale.

    .. math:: -\tfrac12 \bigl(d \log 2 \pi + \sum_{i \le q} \log \lambda_i + (d - q) \log \sigma^2 + d\bigr)

    Reference:
        Tipping and Bishop, 1999, Probabilistic Principal Component Analysis, equations 8 and 9.
    """
    values = torch.linalg.eigvalsh(torch.cov(x.double().T, correction=0)).flip(0)
    noise = values[LATENT:].mean()
    logs = values[:LATENT].log().sum() + (OBSERVED - LATENT) * noise.log()
    return -0.5 * (OBSERVED * math.log(2 * math.pi) + logs + OBSERVED).item(), noise.sqrt().item()


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_training_reaches_the_optimum_in_closed_form_and_finds_no_worse_one(seed):
    """Where codes are independent normals, the bound has no other maximum than the likelihood's.

    Reference:
        Lucas, Tucker, Grosse and Norouzi, 2019, Don't Blame the ELBO!, theorem 1.
    """
    x, linear = data(), partial(MLP, hidden=())
    best, noise = best_likelihood(x)
    torch.manual_seed(seed)
    encoder, decoder = (
        encoders.Normal(OBSERVED, LATENT, linear),
        decoders.Normal(LATENT, OBSERVED, linear, learned=True),
    )
    vae = VAE(priors.Normal(LATENT), encoder, decoder)
    settings = {"loss": TraceMeanField_ELBO(), "batch_size": 200, "seed": seed}
    for epochs, rate in ((60, 0.02), (40, 0.002)):
        fit(vae.model, vae.guide, x, epochs=epochs, optimizer=partial(torch.optim.Adam, lr=rate), **settings)
    bound = -evaluate(vae.model, vae.guide, x, loss=TraceMeanField_ELBO(num_particles=10)).loss
    likelihood = log_likelihood(vae.model, vae.guide, x, samples=500)
    assert best - 0.1 < bound < best + 0.02  # the noise of 20,000 draws
    assert best - 0.1 < likelihood < best + 0.005
    assert vae.decoder.scales().item() == pytest.approx(noise, rel=0.05)
    covariance = torch.cov(x.double().T, correction=0)
    weight = vae.decoder.network.layers[0].weight.detach().double()
    found = weight @ weight.T + vae.decoder.scales().item() ** 2 * torch.eye(OBSERVED)
    _, directions = torch.linalg.eigh(covariance)
    principal = directions[:, -LATENT:]
    outside = weight - principal @ (principal.T @ weight)
    assert outside.norm() < 0.1 * weight.norm()  # the columns span the principal subspace
    assert (found - covariance).norm() < 0.1 * covariance.norm()
