"""The posteriors that the latent map draws, against their covariances."""

import numpy as np
import pytest
import torch

from pyro_vae import decoders, encoders, plots, priors
from pyro_vae.runs.pictures import cloud_figure, grid_figure, posterior_moments
from pyro_vae.vae import VAE

ENCODERS = {
    "Normal": lambda: encoders.Normal(7, 3),
    "FullRankNormal": lambda: encoders.FullRankNormal(7, 3),
    "LowRankNormal": lambda: encoders.LowRankNormal(7, 3, rank=1),
    "MixtureOfNormals": lambda: encoders.MixtureOfNormals(7, 3),
    "Flow": lambda: encoders.Flow(7, 3),
    "PowerSpherical": lambda: encoders.PowerSpherical(7, 3),
    "Dirichlet": lambda: encoders.Dirichlet(7, 3),
    "Delta": lambda: encoders.Delta(7, 3),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_the_latent_map_has_the_covariances_of_the_posteriors(name):
    # Of 100 draws, which stand for what has no closed form, the average of 50 errors of an entry stays within 4 of
    # their standard errors; the reference is of 20,000 draws.
    torch.manual_seed(1)
    encoder, x = ENCODERS[name](), 3 * torch.randn(50, 7)
    mean, scale = posterior_moments(VAE(priors.Normal(3), encoder, decoders.Normal(3, 7)), x)
    _, covariances = plots.project(mean, scale)
    with torch.no_grad():
        draws = encoder(x).sample((20_000,))[..., :2]
    exact = np.array([np.cov(draws[:, n].numpy(), rowvar=False) for n in range(50)])
    sizes = np.sqrt(exact.diagonal(axis1=1, axis2=2))
    errors = (covariances - exact) / np.maximum(sizes[:, :, None] * sizes[:, None, :], 1e-9)
    assert (np.abs(errors.mean(0)) < 4 * errors.std(0) / np.sqrt(50) + 1e-3).all()
    assert np.abs(errors).max() < (0.1 if name in ("Normal", "FullRankNormal", "LowRankNormal", "Delta") else 1.5)


def test_codes_of_several_dimensions_are_laid_out_in_one():
    torch.manual_seed(2)
    encoder = encoders.OneHotCategorical(7, 2, categories=3)
    x = torch.randn(200, 7)
    mean, scale = posterior_moments(
        VAE(priors.OneHotCategorical(2, categories=3), encoder, decoders.Normal((2, 3), 7)), x
    )
    probabilities = encoder(x).mean.detach()
    assert torch.equal(mean, probabilities.flatten(1))
    p, covariances = probabilities[:, 0], (scale @ scale.mT)[:, :3]
    exact = torch.cat([torch.diag_embed(p) - p[:, :, None] * p[:, None, :], torch.zeros(200, 3, 3)], 2)
    errors = covariances - exact
    assert (errors.mean(0).abs() < 4 * errors.std(0) / 200**0.5 + 1e-3).all()


def test_the_codes_behind_a_cloud_lie_on_the_sphere_as_its_draws_do(monkeypatch):
    drawn = {}
    monkeypatch.setattr(
        plots, "posterior_cloud", lambda _x, draws, _y, codes, _t: drawn.update(draws=draws, codes=codes)
    )
    torch.manual_seed(3)
    vae = VAE(priors.HypersphericalUniform(2), encoders.PowerSpherical(7, 2), decoders.Normal(2, 7))
    cloud_figure(vae, torch.randn(30, 7), seed=0)
    assert np.allclose(np.linalg.norm(drawn["draws"], axis=1), 1)
    assert np.allclose(np.linalg.norm(drawn["codes"], axis=1), 1)  # the means of the posteriors lie inside


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_a_decoded_grid_reaches_as_far_as_the_prior(scale, monkeypatch):
    found = {}
    monkeypatch.setattr(plots, "decoded_grid", lambda images, extent, _: found.update(images=images, extent=extent))
    torch.manual_seed(4)
    prior = priors.Normal(2, learned=True)
    prior.log_scale.data.fill_(np.log(scale))
    decoder = decoders.Normal(2, 2, lambda *_: torch.nn.Identity())  # shows the codes themselves
    grid_figure(VAE(prior, encoders.Normal(2, 2), decoder), side=3)
    assert np.allclose(np.array(found["extent"]) / scale, [-3, 3, -3, 3], atol=0.15)  # 100,000 draws
    assert np.allclose(found["images"][0, 0], [found["extent"][0], found["extent"][2]])
