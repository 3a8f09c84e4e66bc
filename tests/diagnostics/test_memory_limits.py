from functools import partial

import pytest

from pyro_vae import log_likelihood
from pyro_vae.diagnostics.calibration import calibration
from pyro_vae.diagnostics.codes import codes
from pyro_vae.diagnostics.estimators import linear_gaussian
from pyro_vae.diagnostics.gaps import inference_gap
from pyro_vae.diagnostics.local_test import local_test
from pyro_vae.runtime.memory import peak_of

VAE, DATA = linear_gaussian(offset=0.3, factor=1.0, count=200)
SOME = {"likelihood": log_likelihood(VAE.model, VAE.guide, DATA[:50], per_datum=True), "samples": 200}

MEASURES = {
    "codes": lambda guide, **memory: codes(VAE.model, guide, DATA, **memory).mutual_information,
    "calibration": lambda guide, **memory: calibration(VAE.model, guide, DATA, **memory).ranks.double().mean().item(),
    "local test": lambda guide, **memory: local_test(
        VAE.model, guide, DATA, DATA[:1], permutations=1, **memory
    ).statistic.item(),
    "gaps": lambda guide, **memory: (
        inference_gap(VAE.model, guide, DATA[:50], **SOME, steps=3, starts=1, **memory).bound.mean().item()
    ),
}


@pytest.mark.parametrize("name", MEASURES)
def test_a_small_memory_lets_fewer_data_be_measured_together(name):
    """The largest batch that the guide gets is smaller, and the number is the same up to its noise."""
    sizes = []

    def guide(x):
        sizes.append(len(x))
        return VAE.guide(x)

    whole = MEASURES[name](guide)
    largest = max(sizes)
    sizes.clear()
    assert MEASURES[name](guide, memory="100kB" if name == "gaps" else "400kB") == pytest.approx(whole, rel=0.25)
    assert max(sizes[2:]) < largest  # the first two are those of the checks


@pytest.mark.parametrize("name", MEASURES)
def test_the_trials_of_the_memory_take_no_noise(name):
    assert MEASURES[name](VAE.guide, memory="1GB") == MEASURES[name](VAE.guide, memory="3GB")


@pytest.mark.parametrize("name", MEASURES)
def test_a_memory_that_is_too_small_for_a_datum_is_refused(name):
    with pytest.raises(ValueError, match=r"^a memory of 10 bytes is too small for "):
        MEASURES[name](VAE.guide, memory=10)


@pytest.mark.parametrize("limit", [1_000_000, 500_000])
def test_what_is_measured_together_stays_within_the_memory(limit):
    """The peak of all tensors that are alive is that of one search, of which all results are a small part."""
    assert limit / 4 < peak_of(partial(MEASURES["gaps"], VAE.guide, memory=limit)) < 1.1 * limit
