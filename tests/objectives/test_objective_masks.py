"""What masks and scales of the programs' own do to the objectives of this package."""

import math

import pyro
import pytest
import torch
from pyro import poutine

from pyro_vae import VAE, decoders, encoders, objectives, priors

pytestmark = pytest.mark.usefixtures("float64")
BY_DATUM = [
    objectives.IWAE(4),
    objectives.DReG(4),
    objectives.Renyi(0.5, 4),
    objectives.Renyi(-math.inf, 4),
    objectives.CIWAE(0.3, 4),
    objectives.MIWAE(2, 2),
    objectives.PIWAE(2, 2),
    objectives.VIMCO(4),
    objectives.Thermodynamic(4, 3, 0.1),
    objectives.StickingTheLanding(4),
]
BY_BATCH = [objectives.FreeBits(0.1), objectives.InfoVAE(), objectives.BetaTC(3.0, 100)]
MASK = torch.tensor([True, False, True, True, False])


@pytest.fixture
def vae(float64):  # noqa: ARG001 (the dtype of what is drawn)
    torch.manual_seed(0)
    return VAE(priors.Normal(2), encoders.Normal(4, 2), decoders.Normal(2, 4))


def masked(vae, mask=MASK):
    return poutine.mask(vae.model, mask=mask), poutine.mask(vae.guide, mask=mask)


def terms_and_gradients(loss, vae, programs, x):
    torch.manual_seed(1)
    terms = loss.terms(*programs, x)
    gradients = torch.autograd.grad(terms.loss, list(vae.parameters()))
    return [term.detach() for term in terms], gradients


@pytest.mark.parametrize("loss", BY_DATUM, ids=repr)
def test_a_masked_datum_has_no_part_in_value_or_gradient(loss, vae):
    x = torch.randn(5, 4)
    other = torch.where(MASK[:, None], x, 3 + torch.randn(5, 4))
    one = terms_and_gradients(loss, vae, masked(vae), x)
    two = terms_and_gradients(loss, vae, masked(vae), other)
    torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("loss", BY_DATUM, ids=repr)
def test_where_all_is_masked_nothing_is_left(loss, vae):
    (value, *_), gradients = terms_and_gradients(
        loss, vae, masked(vae, torch.zeros(5, dtype=torch.bool)), torch.randn(5, 4)
    )
    assert value == 0
    assert not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("loss", BY_BATCH, ids=lambda loss: type(loss).__name__)
def test_an_objective_that_holds_the_data_of_a_batch_together_takes_no_mask(loss, vae):
    with pytest.raises(ValueError, match=f"{type(loss).__name__} .* mask at site 'z': leave the masked data out"):
        loss.loss(*masked(vae), torch.randn(5, 4))


@pytest.mark.parametrize("loss", BY_BATCH, ids=lambda loss: type(loss).__name__)
def test_an_objective_that_holds_the_data_of_a_batch_together_takes_no_scale(loss, vae):
    programs = (poutine.scale(program, 0.5) for program in (vae.model, vae.guide))
    with pytest.raises(ValueError, match=f"{type(loss).__name__} .* scale of 0\\.5 at site 'x'"):
        loss.loss(*programs, torch.randn(5, 4))


@pytest.mark.parametrize("loss", BY_BATCH, ids=lambda loss: type(loss).__name__)
def test_it_takes_no_scale_of_each_datum_for_the_codes(loss, vae):
    """As many data as dimensions of a code, so that the scales would broadcast along the wrong ones."""

    def guide(x):
        with pyro.plate("data", len(x)), poutine.scale(scale=torch.tensor([1.0, 2.0])):
            pyro.sample("z", vae.encoder(x))

    with pytest.raises(ValueError, match=rf"{type(loss).__name__} .* scale of shape \(2,\) at site 'z'"):
        loss.loss(vae.model, guide, torch.randn(2, 4))
