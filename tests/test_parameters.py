"""What a user writes is what the distribution has: no number of a constructor is clipped or changes unasked."""

import inspect
import math
import re

import pytest
import torch
from part_cases import SHAPE, D, public_parts

from pyro_vae import decoders, encoders, networks, priors
from pyro_vae.networks import held

NETWORKS = [networks.MLP, networks.ConvEncoder, networks.ConvDecoder, networks.FillMissing]

# For each number of a constructor: the values to try, and where the distribution has it.
SMALL_TO_LARGE = [1e-30, 1e-6, 0.01, 0.3, 1.0, 12.5, 1e3, 1e5, 1e8]
SCALES = [1e-18, 1e-6, 1e-4, 0.3, 1.0, 1e5, 1e18]
DEGREES = [2.001, 2.5, 30.0, 1e5, 1e8, 1e30]
TEMPERATURES = [1e-3, 0.1, 0.67, 5.0, 1e3]


def scale_of(distribution):
    return distribution.base_dist.scale


def df_of(distribution):
    return distribution.base_dist.df


def temperature_of(distribution):
    return distribution.base_dist.temperature


def dispersion_of(distribution):
    counts = distribution.base_dist
    return getattr(counts, "base_dist", counts).log_inverse_dispersion.exp()


def concentrations_of(distribution):
    base = getattr(distribution, "base_dist", distribution)
    names = [name for name in ("concentration", "concentration1", "concentration0") if hasattr(base, name)]
    return torch.stack([getattr(base, name) for name in names])


NUMBERS = {
    (decoders.Laplace, "scale"): (SCALES, scale_of),
    (decoders.NegativeBinomial, "inverse_dispersion"): ([*SMALL_TO_LARGE, 1e30], dispersion_of),
    (decoders.Normal, "scale"): (SCALES, scale_of),
    (decoders.StudentT, "df"): (DEGREES, df_of),
    (decoders.StudentT, "scale"): (SCALES, scale_of),
    (decoders.ZeroInflatedNegativeBinomial, "inverse_dispersion"): ([*SMALL_TO_LARGE, 1e30], dispersion_of),
    (encoders.RelaxedOneHotCategorical, "temperature"): (TEMPERATURES, temperature_of),
    (encoders.StudentT, "df"): (DEGREES, df_of),
    (priors.Beta, "concentration"): (SMALL_TO_LARGE, concentrations_of),
    (priors.Dirichlet, "concentration"): (SMALL_TO_LARGE, concentrations_of),
    (priors.Gamma, "concentration"): (SMALL_TO_LARGE, concentrations_of),
    (priors.RelaxedOneHotCategorical, "temperature"): (TEMPERATURES, temperature_of),
    (priors.StudentT, "df"): (DEGREES, df_of),
}
# Numbers of an algorithm, which no distribution has; the last temperature is tested with the annealing.
OF_ALGORITHMS = {
    (encoders.RelaxedOneHotCategorical, "final_temperature"),
    (encoders.SemiAmortized, "step_size"),
    (encoders.SemiAmortized, "clip_norm"),
}
CASES = [
    pytest.param(
        family,
        name,
        value,
        read,
        learned,
        id=f"{family.__module__.split('.')[1]}.{family.__name__}-{name}-{value}-{learned}",
    )
    for (family, name), (values, read) in NUMBERS.items()
    for value in values
    for learned in ([False, True] if "learned" in inspect.signature(family).parameters else [None])
]


def distribution_of(family, **own):
    own = {name: value for name, value in own.items() if value is not None}
    if family.__module__.startswith("pyro_vae.priors"):
        return family(D, **own)()
    if family.__module__.startswith("pyro_vae.encoders"):
        return family(SHAPE, D, **own)(torch.zeros(2, *SHAPE))
    return family(D, SHAPE, **own)(torch.zeros(2, D))


def test_the_walk_finds_every_number_of_a_constructor():
    found = {
        (family, name)
        for family in public_parts()
        for name, parameter in inspect.signature(family).parameters.items()
        if "float" in str(parameter.annotation)
    }
    assert found == NUMBERS.keys() | OF_ALGORITHMS


@pytest.mark.parametrize(("family", "name", "value", "read", "learned"), CASES)
def test_the_distribution_has_the_number_that_was_asked_for(family, name, value, read, learned):
    got = read(distribution_of(family, learned=learned, **{name: value})).detach()
    # A learned number is kept by its logarithm, which 32 bits round.
    stored_as_logarithm = (learned and name not in ("df", "temperature")) or name == "inverse_dispersion"
    tolerance = 2e-7 * max(1.0, abs(math.log(value))) if stored_as_logarithm else 1e-7
    torch.testing.assert_close(got, torch.full_like(got, value), rtol=tolerance, atol=0)


@pytest.mark.parametrize(
    "family", [family for family, name in NUMBERS if name in ("scale", "concentration", "inverse_dispersion")]
)
@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan, 1e-40, 1e40])
def test_numbers_that_32_bits_cannot_hold_are_refused_with_the_value(family, value):
    name = next(name for other, name in NUMBERS if other is family and name != "df")
    with pytest.raises(ValueError, match=f"{name} of .*{family.__name__}.* not {re.escape(repr(value))}"):
        distribution_of(family, **{name: value})


@pytest.mark.parametrize("df", [2.0, 2.0000000001, math.inf])
def test_degrees_of_freedom_that_round_to_2_are_refused(df):
    with pytest.raises(ValueError, match=f"not {df!r}"):
        priors.StudentT(D, df=df)


def test_the_refusal_of_a_number_names_the_range():
    with pytest.raises(ValueError, match=r"the scale must be from 1e-30 to 1e\+30, which 32 bits can hold, not 1e-40"):
        held(1e-40, 0, "the scale")


@pytest.mark.parametrize(
    ("family", "concentration"),
    [(f, c) for f in (priors.Gamma, priors.Beta, priors.Dirichlet) for c in (1e-2, 1.0, 1e5)],
)
def test_a_learned_concentration_is_trained_from_where_it_starts(family, concentration):
    torch.manual_seed(0)
    prior = family(D, concentration=concentration, learned=True)
    optimizer = torch.optim.Adam(prior.parameters(), lr=0.05)
    target = family(D, concentration=2.0)().sample((200,))
    first = -prior().log_prob(target).mean().item()
    for _ in range(60):
        optimizer.zero_grad()
        loss = -prior().log_prob(target).mean()
        loss.backward()
        assert all(parameter.grad.isfinite().all() and parameter.grad.any() for parameter in prior.parameters())
        optimizer.step()
    assert math.isfinite(loss.item())
    assert loss.item() < first


@pytest.mark.parametrize("family", [decoders.NegativeBinomial, decoders.ZeroInflatedNegativeBinomial])
def test_an_inverse_dispersion_of_a_million_is_trained_towards_that_of_the_data(family):
    torch.manual_seed(0)
    x = torch.distributions.NegativeBinomial(torch.tensor(0.5), logits=torch.tensor(2.0)).sample((64, 20))
    decoder = family(D, 20, inverse_dispersion=1e6)
    before = decoder.log_inverse_dispersion.detach().clone()
    optimizer = torch.optim.Adam(decoder.parameters(), lr=0.05)
    for _ in range(20):
        optimizer.zero_grad()
        (-decoder(torch.zeros(64, D)).log_prob(x).mean()).backward()
        optimizer.step()
    assert (decoder.log_inverse_dispersion < before - 0.3).all()
    assert decoder(torch.zeros(64, D)).log_prob(x).isfinite().all()


def flags_of(families):
    return [
        pytest.param(family, name, id=f"{family.__module__}.{family.__name__}-{name}")
        for family in sorted(families, key=lambda family: (family.__module__, family.__name__))
        for name, parameter in inspect.signature(family).parameters.items()
        if parameter.annotation in (bool, "bool")
    ]


@pytest.mark.parametrize(("family", "name"), flags_of([*public_parts(), *NETWORKS]))
@pytest.mark.parametrize("value", ["false", math.nan, 1])
def test_flags_are_true_or_false(family, name, value):
    """The text "false", which a config may hold, is true to Python."""
    kind = family.__module__.split(".")[1]
    first = {"priors": [D], "encoders": [SHAPE, D], "decoders": [D, SHAPE], "networks": [(1, 8, 8), (1, 8, 8)]}[kind]
    first = [encoders.Normal(SHAPE, D)] if family is priors.VampPrior else first
    with pytest.raises(TypeError, match=f"{name} must be True or False, not {value!r}"):
        family(*first, **{name: value})
