"""Data of which only one part has been scaled are refused."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.utils.data import DataLoader

from pyro_vae import VAE, data, decoders, encoders, fit, priors
from pyro_vae.data.scales import check_one_scale

PIXELS = 255 * torch.rand(40, 3, generator=torch.Generator().manual_seed(0))
EIGHT_BITS = PIXELS.to(torch.uint8)


@pytest.mark.parametrize(
    ("x", "validation"),
    [
        (PIXELS / 255, PIXELS[:9]),
        (PIXELS, PIXELS[:9] / 255),
        (PIXELS / 127.5 - 2, PIXELS[:9] / 255),
        (data.EightBit(EIGHT_BITS), EIGHT_BITS[:9]),
        (DataLoader(PIXELS / 255, batch_size=8), PIXELS[:9]),
        (PIXELS / 255, DataLoader(PIXELS, batch_size=8)),
    ],
)
def test_validation_data_of_another_scale_are_refused_with_both_ranges(x, validation):
    vae = VAE(priors.Normal(2), encoders.Normal((3,), 2), decoders.Normal(2, (3,)))
    with pytest.raises(ValueError, match=r"the data go from .* to .*, and the validation data from .* to .*: bring"):
        fit(vae.model, vae.guide, x, validation=validation, epochs=0)


def test_parts_of_validation_data_of_another_scale_are_refused_by_name():
    def model(x, t):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([len(x)]))
            pyro.sample("x", dist.Normal(z[..., None] + t[:, None], 1.0).expand([len(x), 3]).to_event(1), obs=x)

    def guide(x, t):  # noqa: ARG001 (called as the model)
        loc = pyro.param("loc", torch.zeros(()))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0).expand([len(x)]))

    time, small = torch.arange(40.0), PIXELS / 255
    with pytest.raises(ValueError, match=r"the data of part x go from 0\..*, and the validation data of part x from"):
        fit(model, guide, {"x": small, "t": time}, validation={"x": PIXELS[:9], "t": time[:9]}, epochs=0)
    fit(model, guide, {"x": small, "t": time / 40}, validation={"x": small[:9], "t": 50 + time[:9]}, epochs=0)


def test_validation_data_of_one_scale_and_few_data_are_measured():
    vae = VAE(priors.Normal(2), encoders.Normal((3,), 2), decoders.Normal(2, (3,)))
    counts = torch.poisson(torch.full((40, 3), 2.0))
    for validation in (3 * counts[:9] + 1, 50 * counts[:3] + 50, torch.zeros(9, 3), torch.full((9, 3), torch.nan)):
        check_one_scale(counts, validation)
    fit(vae.model, vae.guide, counts, validation=3 * counts[:9], epochs=0)


def test_infinite_validation_data_are_refused_as_such():
    vae = VAE(priors.Normal(2), encoders.Normal((3,), 2), decoders.Normal(2, (3,)))
    with pytest.raises(ValueError, match=r"the data hold inf at index .0, 0. of the validation data"):
        fit(vae.model, vae.guide, PIXELS, validation=torch.full((9, 3), torch.inf), epochs=0)
