import math
from functools import lru_cache, partial

import pyro
import pyro.distributions as dist
import pytest
import torch
import zuko
from pyro import poutine
from pyro.contrib.zuko import ZukoToPyro
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoLowRankMultivariateNormal,
    AutoNormal,
    AutoNormalMessenger,
)
from pyro.nn import PyroModule, PyroParam
from torch import nn
from torch.distributions import constraints
from torch.utils.data import DataLoader

from pyro_vae import VAE, data, decoders, encoders, evaluate, fit, log_likelihood, objectives, priors
from pyro_vae.networks import FillMissing, GRUEncoder
from pyro_vae.programs import as_input, check_programs, mode, modules_of, paired_traces, seeded
from pyro_vae.programs.handlers import LocalModules
from pyro_vae.programs.sites import check_points

D, SHAPE = 3, (1, 4, 5)


class Part(nn.Module):
    """A part that returns what a function returns."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args):
        return self.function(*args)


def vae(prior=None, encoder=None, decoder=None, latent_dim=D):
    return VAE(
        prior or priors.Normal(latent_dim),
        encoder or encoders.Normal(SHAPE, latent_dim),
        decoder or decoders.Normal(latent_dim, SHAPE),
    )


def grey(count=10):
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(1))


def check(pair, x=None, **kwargs):
    check_programs(pair.model, pair.guide, grey() if x is None else x, **kwargs)


# What fits is accepted


@pytest.mark.parametrize(
    "decoder",
    [
        decoders.Normal(D, SHAPE),
        decoders.Bernoulli(D, SHAPE, grey=True),
        decoders.ContinuousBernoulli(D, SHAPE),
    ],
    ids=lambda decoder: type(decoder).__name__,
)
@pytest.mark.parametrize("count", [1, 2, 3, 10])
def test_programs_that_fit_are_accepted_at_any_number_of_data(decoder, count):
    check(vae(decoder=decoder), grey(count))


def test_binary_data_fit_the_strict_bernoulli():
    check(vae(decoder=decoders.Bernoulli(D, SHAPE)), grey().round())


@pytest.mark.parametrize("transform", [data.threshold, data.dynamic])
def test_the_data_are_checked_as_the_transform_leaves_them(transform):
    check(vae(decoder=decoders.Bernoulli(D, SHAPE)), grey(), transform=transform)


def test_a_decoder_whose_support_depends_on_its_parameters_is_accepted():
    def binomial(z):
        return dist.Binomial(16, logits=z.sum(-1)[..., None, None, None].expand(*z.shape[:-1], *SHAPE)).to_event(3)

    x = (16 * grey()).round()
    check(vae(decoder=Part(binomial)), x)
    x[9] = 17
    with pytest.raises(ValueError, match="the data hold 17"):
        check(vae(decoder=Part(binomial)), x)


def test_a_pair_on_one_support_other_than_the_reals_is_accepted():
    prior = Part(lambda: dist.Gamma(torch.full((D,), 2.0), 1.0).to_event(1))
    encoder = Part(lambda x: dist.LogNormal(torch.zeros(len(x), D), 1.0).to_event(1))
    check(vae(prior, encoder))


def test_checking_leaves_the_parameter_store_empty_and_records_no_gradients():
    seen = []

    def decode(z):
        seen.append(torch.is_grad_enabled())
        return dist.Normal(torch.zeros(len(z), *SHAPE), 1.0).to_event(3)

    check(vae(decoder=Part(decode)))
    assert not list(pyro.get_param_store().keys())
    assert set(seen) == {False}


# Parts that do not fit


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("prior", lambda: torch.distributions.Normal(torch.zeros(D), 1.0)),
        ("encoder", lambda x: torch.distributions.Normal(torch.zeros(len(x), D), 1.0)),
        ("decoder", lambda z: torch.distributions.Normal(torch.zeros(len(z), *SHAPE), 1.0)),
    ],
)
def test_a_plain_torch_distribution_is_refused_with_the_one_to_take(part, value):
    message = f"the {part} must return a distribution of pyro.distributions.*take pyro.distributions.Normal"
    with pytest.raises(TypeError, match=message):
        check(vae(**{part: Part(value)}))


@pytest.mark.parametrize("part", ["prior", "encoder", "decoder"])
@pytest.mark.parametrize("value", [torch.zeros(2, D), (torch.zeros(D), torch.ones(D)), None])
def test_what_is_no_distribution_is_refused_with_its_type(part, value):
    with pytest.raises(TypeError, match=f"the {part} must return a distribution .*{type(value).__name__}"):
        check(vae(**{part: Part(lambda *_: value)}))


def loose(part, latent_dim=D):
    """Return a VAE of which one part does not declare its last dimensions as its event."""
    functions = {
        "prior": lambda: dist.Normal(torch.zeros(latent_dim), 1.0),
        "encoder": lambda x: dist.Normal(torch.zeros(len(x), latent_dim), 1.0),
        "decoder": lambda z: dist.Normal(torch.zeros(len(z), *SHAPE), 1.0),
    }
    return vae(**{part: Part(functions[part])}, latent_dim=latent_dim)


@pytest.mark.parametrize(("part", "dims"), [("prior", 1), ("encoder", 1), ("decoder", 3)])
@pytest.mark.parametrize(("count", "latent_dim"), [(10, 3), (2, 2), (3, 3), (1, 1), (4, 2), (1, 3)])
def test_a_missing_to_event_is_refused_also_where_the_batch_size_would_hide_it(part, dims, count, latent_dim):
    with pytest.raises(ValueError, match=rf"the {part} must return .* add \.to_event\({dims}\)"):
        check(loose(part, latent_dim), grey(count))


def test_too_few_event_dimensions_are_counted():
    decoder = Part(lambda z: dist.Normal(torch.zeros(len(z), *SHAPE), 1.0).to_event(1))
    with pytest.raises(ValueError, match=r"batch shape \(2, 1, 4\) and event shape \(5,\).*to_event\(2\)"):
        check(vae(decoder=decoder))


def test_too_many_event_dimensions_are_refused():
    encoder = Part(lambda x: dist.Normal(torch.zeros(len(x), D), 1.0).to_event(2))
    with pytest.raises(ValueError, match=r"the encoder must return .* batch shape \(2,\), but .* batch shape \(\)"):
        check(vae(encoder=encoder))


def test_one_datum_without_a_batch_is_refused_with_the_shape_that_data_have():
    with pytest.raises(
        ValueError, match=r"batch shape \(\) and event shape \(3,\): give it data of shape \(N, \*shape\)"
    ):
        check(vae(), grey(1)[0])


def test_different_latent_dims_of_prior_and_encoder_are_refused_with_both():
    with pytest.raises(ValueError, match=r"prior's event shape is \(4,\) and the encoder's \(3,\).*latent_dim"):
        check(vae(prior=priors.Normal(4)))


def test_another_latent_dim_of_the_decoder_is_refused_with_both():
    with pytest.raises(ValueError, match=r"decoders\.Normal was built for z .*\(\*batch, 4\), but got \(2, 3\)"):
        check(vae(decoder=decoders.Normal(4, SHAPE)))


def test_another_shape_of_the_encoder_is_refused_with_both():
    with pytest.raises(ValueError, match=r"encoders\.Normal was built for x .*1, 5, 4\), but got \(2, 1, 4, 5\)"):
        check(vae(encoder=encoders.Normal((1, 5, 4), D)))


@pytest.mark.parametrize("shape", [(1, 5, 4), (4, 5), (20,), (1, 1, 1)])
def test_another_shape_of_the_decoder_is_refused_with_both(shape):
    with pytest.raises(ValueError, match=r"decoder's event shape is .* one datum has shape \(1, 4, 5\)") as caught:
        check(vae(decoder=decoders.Normal(D, shape)))
    assert str(shape) in str(caught.value)


def test_a_part_that_fails_is_named_with_its_input():
    with pytest.raises(ValueError, match=r"the encoder, Linear, fails on \(2, 1, 4, 5\)"):
        check(vae(encoder=nn.Linear(7, 2)))


def exponential():
    return Part(lambda: dist.Exponential(torch.ones(D)).to_event(1))


@pytest.mark.parametrize(
    ("prior", "encoder", "message"),
    [
        (
            exponential(),
            encoders.Normal(SHAPE, D),
            "the prior has support GreaterThanEq.*0.*the encoder Real",
        ),
        (
            priors.Normal(D),
            Part(lambda x: dist.Beta(torch.ones(len(x), D), 1.0).to_event(1)),
            r"the prior has support Real",
        ),
        (  # beyond which no draw lies by chance
            Part(lambda: dist.Uniform(-6 * torch.ones(D), 6.0).to_event(1)),
            encoders.Normal(SHAPE, D),
            r"support _Interval, the encoder Real; they must match",
        ),
        (
            Part(lambda: dist.Uniform(torch.zeros(D), 1.0).to_event(1)),
            Part(lambda x: dist.Gamma(torch.ones(len(x), D), 1.0).to_event(1)),
            r"they must match: take a guide for it \(above 0 Gamma",
        ),
        (
            Part(lambda: dist.Uniform(torch.zeros(D), 2.0).to_event(1)),
            Part(lambda x: dist.Uniform(torch.zeros(len(x), D), 1.0).to_event(1)),
            "they must match: draws from a part .* let the guide reach all of it",
        ),
        (
            Part(lambda: dist.Geometric(torch.full((D,), 0.5)).to_event(1)),
            Part(lambda x: dist.Bernoulli(torch.full((len(x), D), 0.5)).to_event(1)),
            "they must match: draws from a part",
        ),
    ],
)
def test_prior_and_encoder_on_different_supports_are_refused_with_both(prior, encoder, message):
    with pytest.raises(ValueError, match=message):
        check(vae(prior, encoder))


POSITIVE = {
    "InverseGamma": lambda ones: dist.InverseGamma(3 * ones, ones),
    "LogNormal": lambda ones: dist.LogNormal(0 * ones, ones),
    "Gamma": lambda ones: dist.Gamma(ones, ones),
    "Exponential": lambda ones: dist.Exponential(ones),
}


@pytest.mark.parametrize("guide", POSITIVE)
@pytest.mark.parametrize("prior", POSITIVE)
def test_supports_that_differ_in_the_point_0_alone_are_accepted(prior, guide):
    check(
        vae(
            Part(lambda: POSITIVE[prior](torch.ones(D)).to_event(1)),
            Part(lambda x: POSITIVE[guide](torch.ones(len(x), D)).to_event(1)),
        )
    )


# Data that do not fit


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("index", [(0, 0, 0, 0), (9, 0, 3, 4)])
def test_data_that_are_not_finite_are_refused_with_their_place(value, index):
    x = grey()
    x[index] = value
    with pytest.raises(ValueError, match=r"the data hold .* at index") as caught:
        check(vae(), x)
    assert f"hold {value} at index {index}" in str(caught.value)


@pytest.mark.parametrize("row", [0, 9])
def test_grey_pixels_for_the_strict_bernoulli_are_refused_with_the_two_ways_out(row):
    x = grey().round()
    x[row, 0, 1, 2] = 0.25
    with pytest.raises(ValueError, match=r"hold 0\.25, outside .*binarize .*grey=True"):
        check(vae(decoder=decoders.Bernoulli(D, SHAPE)), x)


@pytest.mark.parametrize("count", [9_999, 10_001, 20_001])
def test_the_last_of_many_data_is_checked_too(count):
    x = torch.zeros(count, 1)
    x[-1] = 0.25
    small = VAE(priors.Normal(1), encoders.Delta(1, 1), decoders.Bernoulli(1, 1))
    with pytest.raises(ValueError, match=r"hold 0\.25"):
        check(small, x)


@pytest.mark.parametrize(
    "decoder",
    [decoders.Bernoulli(D, SHAPE), decoders.Bernoulli(D, SHAPE, grey=True), decoders.ContinuousBernoulli(D, SHAPE)],
)
def test_pixels_of_255_are_refused_with_the_scale_to_take(decoder):
    with pytest.raises(ValueError, match=r"hold 255, outside .* scale the data to \[0, 1\]"):
        check(vae(decoder=decoder), 255 * grey().round())


def test_pixels_of_255_are_refused_also_before_dynamic_binarization():
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        check(vae(decoder=decoders.Bernoulli(D, SHAPE)), 255 * grey().round(), transform=data.dynamic)


def test_negative_pixels_are_refused():
    with pytest.raises(ValueError, match=r"hold -1, outside .* scale the data"):
        check(vae(decoder=decoders.ContinuousBernoulli(D, SHAPE)), -torch.ones(10, *SHAPE))


def test_data_that_the_transform_takes_out_of_the_support_are_refused():
    with pytest.raises(ValueError, match="outside the support"):
        check(vae(decoder=decoders.ContinuousBernoulli(D, SHAPE)), grey(), transform=lambda x: x + 1)


# Data of which some entries are missing


def incomplete(row=9):
    x = grey(20)
    x[row, 0, 1, 2] = math.nan
    return x


def vae_of_missing(encoder=None):
    return vae(
        encoder=encoder or encoders.Normal(SHAPE, D, FillMissing), decoder=decoders.Masked(decoders.Normal(D, SHAPE))
    )


@pytest.mark.parametrize("row", [0, 9])
@pytest.mark.parametrize("transform", [None, lambda x: 2 * x])
def test_missing_entries_are_accepted_where_the_decoder_leaves_them_out(row, transform):
    check(vae_of_missing(), incomplete(row), transform=transform)


@pytest.mark.parametrize("row", [0, 9])
def test_missing_entries_are_refused_by_other_decoders_with_their_place_and_the_way_out(row):
    with pytest.raises(ValueError, match=rf"hold nan at index \({row}, 0, 1, 2\).*decoders\.Masked"):
        check(vae(encoder=encoders.Normal(SHAPE, D, FillMissing)), incomplete(row))


def test_infinite_entries_are_refused_by_every_decoder():
    x = incomplete()
    x[3, 0, 0, 0] = math.inf
    with pytest.raises(ValueError, match=r"hold inf at index \(3, 0, 0, 0\)"):
        check(vae_of_missing(), x)


@pytest.mark.parametrize("encoder", [encoders.Normal(SHAPE, D), encoders.Delta(SHAPE, D)], ids=["normal", "delta"])
@pytest.mark.parametrize("row", [0, 9])
def test_an_encoder_that_cannot_take_missing_entries_is_refused_with_the_network_to_take(encoder, row):
    with pytest.raises(ValueError, match=r"missing entries.*networks\.FillMissing"):
        check(vae_of_missing(encoder), incomplete(row))


@pytest.mark.parametrize(
    ("masked", "named"),
    [(decoders.Masked, r"missing entries.*networks\.FillMissing"), (lambda part: part, "hold nan at")],
)
def test_an_embedding_of_tokens_that_are_missing_is_refused(masked, named):
    """It looks NaN up, which is no place in it."""
    x = torch.ones(10, 6)
    x[3, 2] = math.nan
    encoder = encoders.Normal(6, D, partial(GRUEncoder, categories=5))
    with pytest.raises(ValueError, match=named):
        check(vae(encoder=encoder, decoder=masked(decoders.Categorical(D, 6, categories=5))), x)


def test_what_is_outside_the_support_is_named_also_among_missing_entries():
    x = incomplete().round()
    x[5, 0, 0, 0] = 0.25
    part = decoders.Masked(decoders.Bernoulli(D, SHAPE))
    with pytest.raises(ValueError, match=r"hold 0\.25, outside .*binarize"):
        check(vae(encoder=encoders.Normal(SHAPE, D, FillMissing), decoder=part), x)


def test_a_transform_that_makes_nan_is_refused():
    with pytest.raises(ValueError, match="hold nan, outside the support"):
        check(
            vae(encoder=encoders.Normal(SHAPE, D, FillMissing)),
            grey(),
            transform=lambda x: x.masked_fill(x > 0.9, math.nan),
        )


# Programs of one's own


def own(latent, posterior, likelihood):
    """Return a model and a guide of a site z and a site x, with the distributions that functions return."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", latent(x))
            pyro.sample("x", likelihood(z), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", posterior(x))

    return model, guide


def normal(x, size=D):
    return dist.Normal(torch.zeros(len(x), size), 1.0).to_event(1)


def plain(x):
    return torch.distributions.Normal(torch.zeros(len(x)), 1.0)


def pixels(z):
    return dist.Normal(torch.zeros(len(z), *SHAPE), 1.0).to_event(3)


def test_a_pair_of_ones_own_is_accepted():
    check_programs(*own(normal, normal, pixels), grey())


@pytest.mark.parametrize(
    ("functions", "site"),
    [((plain, normal, pixels), "z"), ((normal, plain, pixels), "z"), ((normal, normal, plain), "x")],
)
def test_a_plain_torch_distribution_at_a_site_is_refused_with_the_sites_name(functions, site):
    with pytest.raises(TypeError, match=rf"site '{site}' must have a distribution of pyro\.distributions.*plain torch"):
        check_programs(*own(*functions), grey())


@pytest.mark.parametrize(("count", "latent_dim"), [(10, 3), (2, 2), (3, 3), (10, 2), (10, 1)])
@pytest.mark.parametrize("sides", ["both", "model", "guide"])
def test_a_missing_to_event_at_a_site_is_refused_also_where_the_batch_size_would_hide_it(count, latent_dim, sides):
    def wrong(x):
        return dist.Normal(torch.zeros(len(x), latent_dim), 1.0)

    def right(x):
        return normal(x, latent_dim)

    pair = own(right if sides == "guide" else wrong, right if sides == "model" else wrong, pixels)
    with pytest.raises(ValueError, match=r"^[^\n]*\.to_event\(1\)[^\n]*$"):
        evaluate(*pair, grey(count))


def test_programs_without_a_plate_are_refused_with_the_one_to_take():
    def model(x):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])

    def guide(x):
        pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))

    for nesting in (math.inf, 0):
        with pytest.raises(ValueError, match=r"but no plate for its dimension -1.* pyro.plate of 6"):
            evaluate(model, guide, torch.zeros(6, 1), loss=Trace_ELBO(max_plate_nesting=nesting))


def scored(scale):
    """Return programs of one number with a scale."""
    return own(
        lambda _: dist.Normal(torch.zeros(1), 1.0).to_event(1),
        lambda x: normal(x, 1),
        lambda z: dist.Normal(z, scale).to_event(1),
    )


def twice(name):
    """Return programs that call a site as another one is called."""

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", normal(x, 1))
            pyro.sample(name, dist.Normal(0.0, 1.0), obs=x[:, 0])
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x[:, 1])

    return model, scored(1.0)[1]


def encoding(layer, change=lambda x: x):
    """Return programs whose guide gives a layer the data."""

    def guide(x):
        pyro.module("layer", layer)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(layer(change(x)).flatten(1).sum(1), 1.0))

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Categorical(logits=torch.zeros(len(x), 3, 4)).to_event(1), obs=x)

    return model, guide


def of_truth():
    """Return programs that observe whether numbers are positive, as true or false."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", normal(x, 1))
            logits = z[..., 0] + pyro.param("shift", torch.zeros(()))
            pyro.sample("x", dist.Bernoulli(logits=logits), obs=x[:, 0] > 0)

    return model, scored(1.0)[1]


WHOLE = torch.tensor([[0, 1, 3], [2, 2, 1]])
MISTAKES = {
    "negative scale": (scored(-0.5), torch.zeros(2, 1), r"GreaterThan.*invalid values, such as -0\.5\): .*softplus"),
    "nan": (scored(math.nan), torch.zeros(2, 1), r"such as nan\): "),
    "two sites of a name": (twice("x"), torch.zeros(2, 2), r"Multiple sample sites named 'x'\): .*f'x\{number\}'"),
    "a site and a plate": (twice("data"), torch.zeros(2, 2), r"sites named 'data'\): .* plate a name of its own"),
    "whole numbers and a layer": (encoding(nn.Linear(3, 1)), (WHOLE,), r"Long and Float\): give x\.float\(\)"),
    "whole numbers by name": (encoding(nn.Linear(3, 1)), {"x": WHOLE}, r"Long and Float\): give x\.float\(\)"),
    "whole numbers and a convolution": (encoding(nn.Conv1d(2, 1, 1)), (WHOLE,), r"give x\.float\(\)"),
    "an embedding": (encoding(nn.Embedding(4, 1)), WHOLE, r"'indices'.*: use x\.long\(\) .* a tuple, \(x,\)"),
    "one-hot codes": (encoding(nn.Identity(), partial(nn.functional.one_hot, num_classes=4)), WHOLE, r"x\.long\(\)"),
    "an index": (encoding(nn.Identity(), lambda x: torch.zeros(4)[x]), WHOLE, r"x\.long\(\)"),
    "true and false": (of_truth(), torch.zeros(2, 1), r"two bool tensors.*obs=x\.float\(\)"),
    "a layer of another size": (encoding(nn.Linear(2, 1)), torch.ones(2, 3), r"cannot be multiplied.*: give data that"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("call", [evaluate, fit])
def test_an_ordinary_mistake_is_refused_in_one_line_with_the_fix(call, mistake):
    pair, x, words = MISTAKES[mistake]
    with pytest.raises(ValueError, match=words) as caught:
        call(*pair, x)
    assert "\n" not in str(caught.value)


def test_whole_numbers_in_a_tuple_are_whole_numbers_of_an_embedding():
    pair = encoding(nn.Embedding(4, 1))
    assert evaluate(*pair, (WHOLE,)).reconstruction == pytest.approx(3 * math.log(4))
    assert evaluate(*encoding(nn.Linear(3, 1), torch.Tensor.float), (WHOLE,)).reconstruction == pytest.approx(
        3 * math.log(4)
    )


@pytest.mark.parametrize("loss", [Trace_ELBO(), objectives.IWAE(3)], ids=["Trace_ELBO", "IWAE"])
def test_an_observation_of_another_type_is_refused_by_its_type(loss):
    def pixels_in_bits(z):
        return dist.Bernoulli(logits=z).to_event(1)

    pair = observing(pixels_in_bits, lambda x: x > 0)
    with pytest.raises(
        ValueError, match=r"Bernoulli at site 'x' cannot score a value of torch.bool .* obs=x.float\(\)"
    ):
        fit(*pair, torch.zeros(10, D), loss=loss, epochs=1)


def test_sites_of_different_shapes_are_refused_with_both():
    with pytest.raises(ValueError, match=r"site 'z' has shape \(2, 4\) in the model and \(2, 3\) in the guide"):
        check_programs(*own(lambda x: normal(x, 4), normal, pixels), grey())


def test_sites_on_different_supports_are_refused_with_both():
    def positive(x):
        return dist.Exponential(torch.ones(len(x), D)).to_event(1)

    with pytest.raises(ValueError, match=r"site 'z' of the model has support GreaterThanEq.*of the guide Real"):
        check_programs(*own(positive, normal, pixels), grey())


def test_a_model_that_observes_nothing_is_refused():
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", normal(x))

    with pytest.raises(ValueError, match=r"observes nothing.*obs=x"):
        check_programs(model, own(normal, normal, pixels)[1], grey())


@pytest.mark.parametrize(
    "observe",
    [
        lambda z, x: pyro.deterministic("x", z * x),
        lambda z, x: pyro.sample("x", normal(z).mask(False), obs=x),
        lambda z, x: poutine.mask(lambda: pyro.sample("x", normal(z), obs=x), mask=False)(),
    ],
    ids=["deterministic", "masked distribution", "masked site"],
)
def test_a_model_whose_observations_have_no_density_is_refused(observe):
    def model(x):
        with pyro.plate("data", len(x)):
            observe(pyro.sample("z", normal(x)), x)

    with pytest.raises(ValueError, match=r"observes nothing.*obs=x"):
        check_programs(model, own(normal, normal, pixels)[1], torch.zeros(10, D))


def test_a_model_may_observe_by_a_factor_alone():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", normal(x))
            pyro.factor("x", -(z - x).square().sum(-1))

    check_programs(model, own(normal, normal, pixels)[1], torch.zeros(10, D))


def observing(distribution, value):
    """Programs that observe what a function makes of x under what another makes of z."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", normal(x))
            pyro.sample("x", distribution(z), obs=value(x))

    return model, own(normal, normal, pixels)[1]


@pytest.mark.parametrize(
    ("likelihood", "value"),
    [
        (lambda z: dist.Normal(torch.zeros(len(z), 5), 1.0).to_event(1), lambda x: x[:, :1]),
        (lambda z: dist.Normal(torch.zeros(len(z), 1), 1.0).to_event(1), lambda x: x[:, :5]),
        (lambda z: dist.Normal(torch.zeros(len(z), 4, 5), 1.0).to_event(2), lambda x: x[:, None, :5]),
        (lambda z: dist.Normal(torch.zeros(len(z), 4, 5), 1.0).to_event(2), lambda x: x[:, :4, None]),
        (lambda _: dist.Normal(0.0, 1.0), lambda x: x[:, :1]),
        (lambda _: dist.Normal(0.0, 1.0), lambda x: x[:1, 0]),
    ],
    ids=["one for five", "five for one", "one row", "one column", "a column for scalars", "one datum for all"],
)
@pytest.mark.parametrize("call", [evaluate, log_likelihood])
def test_a_value_that_would_be_broadcast_is_refused(likelihood, value, call):
    with pytest.raises(ValueError, match=r"site 'x' observes a value of shape .* they must be equal"):
        call(*observing(likelihood, value), torch.zeros(10, 20))


def test_a_constant_may_be_observed_for_each_datum():
    check_programs(*observing(lambda z: dist.Bernoulli(logits=z.sum(-1)), lambda _: torch.tensor(1.0)), grey())


@pytest.mark.parametrize(
    ("likelihood", "value", "bad"),
    [
        (lambda z: dist.Bernoulli(torch.full((len(z), 20), 0.5)).to_event(1), lambda x: x.flatten(1), 0.25),
        (lambda z: dist.Exponential(torch.ones(len(z), 2)).to_event(1), lambda x: x.flatten(1)[:, 1:3] - 0.5, -0.25),
        (lambda z: dist.Poisson(torch.ones(len(z), *SHAPE)).to_event(3), lambda x: 3 * x, 0.75),
        (lambda z: dist.Binomial(8, torch.full((len(z),), 0.5)), lambda x: 40 * x[:, 0, 0, 0], 10),
    ],
    ids=["other shape", "a part", "other values", "other type"],
)
@pytest.mark.parametrize("call", [evaluate, log_likelihood])
def test_every_observed_value_is_held_to_the_support_whatever_its_shape(likelihood, value, bad, call):
    x = torch.ones(1500, *SHAPE)
    x[:, 0, 0, 0] = 0
    check_programs(*observing(likelihood, lambda x: value(x).clamp(0, 1).round()), x)
    x[-1] = 0.25
    with pytest.raises(ValueError, match=rf"hold {bad}, outside .*site 'x'"):
        call(*observing(likelihood, value), x)


def test_values_that_the_program_brings_into_the_support_are_accepted():
    bernoulli = lambda z: dist.Bernoulli(torch.full((len(z), *SHAPE), 0.5)).to_event(3)  # noqa: E731
    check_programs(*observing(bernoulli, lambda x: (x > 0.5).to(x.dtype)), grey())


def test_data_outside_the_support_of_a_model_of_ones_own_are_refused():
    def beta(z):
        return dist.Beta(torch.ones(len(z), *SHAPE), 1.0).to_event(3)

    with pytest.raises(ValueError, match=r"hold 255, .*site 'x'"):
        check_programs(*own(normal, normal, beta), 255 * grey().round())


# What is right and looks otherwise


def positive(rate):
    """Programs whose code is positive, at a point that a function names."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Gamma(torch.full((D,), 2.0), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x[:, 0])

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(rate().expand(len(x), D)).to_event(1))

    return model, guide


def test_a_point_on_a_positive_support_is_accepted_there_and_refused_elsewhere():
    x = torch.ones(10, 1)
    check_programs(*positive(lambda: pyro.param("r", torch.tensor(0.5), constraint=constraints.positive)), x)
    with pytest.raises(
        ValueError, match=r"site 'z' of the guide takes the value -0\.5, outside the support Gr.*: give"
    ):
        check_programs(*positive(lambda: pyro.param("r", torch.tensor(-0.5))), x)


@pytest.mark.parametrize("kind", [AutoDelta, AutoNormal, AutoLowRankMultivariateNormal, AutoDiagonalNormal])
def test_autoguides_of_a_positive_site_are_accepted(kind):
    def model(x):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("data", 10, subsample_size=len(x)):
            pyro.sample("x", dist.Poisson(rate), obs=x[:, 0])

    assert math.isfinite(evaluate(model, kind(model), torch.ones(10, 1), batch_size=4).loss)


def test_an_autoguide_that_runs_the_model_itself_is_refused_with_another():
    model = own(normal, normal, pixels)[0]
    with pytest.raises(TypeError, match=r"AutoNormalMessenger runs the model itself.*: take AutoNormal"):
        evaluate(model, AutoNormalMessenger(model), grey())


def test_a_flow_of_zukos_is_accepted_as_it_is():
    flow = zuko.flows.MAF(features=D, context=2, hidden_features=(4,))

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", ZukoToPyro(flow(x)))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", normal(x))
            pyro.sample("x", dist.Normal(z[..., :2], 1.0).to_event(1), obs=x)

    x = torch.randn(10, 2)
    assert modules_of(guide) == [flow]
    assert log_likelihood(model, guide, x, samples=20) > -evaluate(model, guide, x).loss - 5


def test_a_number_of_counts_that_changes_with_the_batch_is_accepted_and_held_to():
    def multinomial(most):
        def model(x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", normal(x))
                pyro.sample("x", dist.Multinomial(most(x), torch.ones(4)), obs=x)

        return model, own(normal, normal, pixels)[1]

    x = torch.arange(2_400.0).reshape(600, 4)
    check_programs(*multinomial(lambda x: int(x.sum(-1).max())), x)
    with pytest.raises(ValueError, match=r"outside the support Multinomial"):
        check_programs(*multinomial(lambda _: 9_000), x)


@pytest.mark.parametrize("value", [lambda x: x, lambda x: x.flatten(1)], ids=["as it is", "flat"])
def test_values_that_a_program_says_are_not_to_be_checked_are_not(value):
    def unchecked(z):
        shape = value(grey()).shape[1:]
        return dist.Bernoulli(torch.full((*z.shape[:-1], *shape), 0.5), validate_args=False).to_event(len(shape))

    pair = observing(unchecked, value)
    expected = 20 * math.log(2)
    assert evaluate(*pair, grey()).reconstruction == pytest.approx(expected, rel=1e-5)
    assert -log_likelihood(*pair, grey(), samples=2) == pytest.approx(expected, rel=1e-5)


def test_missing_entries_that_a_program_leaves_out_itself_are_accepted():
    x = incomplete()

    def leaving_out(filled):
        def model(x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", normal(x))
                observed = x.nan_to_num() if filled else x
                pyro.sample("x", dist.Normal(torch.zeros(SHAPE), 1.0).mask(~x.isnan()).to_event(3), obs=observed)

        return model, own(normal, normal, pixels)[1]

    expected = -dist.Normal(0.0, 1.0).log_prob(x[~x.isnan()]).sum().item() / len(x)
    assert evaluate(*leaving_out(True), x).reconstruction == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match=r"hold nan at index \(9, 0, 1, 2\).*decoders\.Masked"):
        check_programs(*leaving_out(False), x)


def test_missing_entries_that_obs_mask_leaves_out_are_accepted_once_they_are_filled_as_the_refusal_says():
    x = torch.tensor([[0.5], [math.nan], [-1.0], [2.0]])

    def leaving_out(filled):
        def model(x):
            mask = ~x[:, 0].isnan()
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
                value = torch.where(mask, x[:, 0], 1) if filled else x[:, 0]
                pyro.sample("x", dist.Normal(z, 1.0), obs=value, obs_mask=mask)

        return model

    def guide(x):
        with pyro.plate("data", len(x)):
            mean = pyro.param("mean", torch.tensor(1.0))
            z = pyro.sample("z", dist.Normal(mean, 0.5))
            with poutine.mask(mask=x[:, 0].isnan()):
                pyro.sample("x_unobserved", dist.Normal(z, 1.0))

    with pytest.raises(
        ValueError, match=r"hold nan at index \(1, 0\); .* obs=torch\.where\(mask, x, 1\) with obs_mask"
    ):
        evaluate(leaving_out(False), guide, x)
    seen, many = x[~x.isnan()], x.repeat(5000, 1)
    bound = evaluate(leaving_out(True), guide, many, loss=TraceMeanField_ELBO(), batch_size=20_000)
    expected = ((seen - 1) ** 2 + 0.25 + math.log(2 * math.pi)).sum() / 8
    assert bound.reconstruction == pytest.approx(expected.item(), abs=0.02)
    assert bound.kl == pytest.approx((1 + 0.25 - 1) / 2 + math.log(2), rel=1e-5)
    descent = {"optimizer": partial(torch.optim.SGD, lr=1.0), "epochs": 1, "batch_size": 20_000}
    fit(leaving_out(True), guide, many, loss=TraceMeanField_ELBO(), **descent)
    slope = (1 - seen).sum() / 4 + 1
    assert pyro.param("mean").item() == pytest.approx(1 - slope.item(), abs=0.02)


def mean_of(x, start=torch.zeros(3), constraint=constraints.real):  # noqa: B008 (never changed)
    mean = pyro.param("mean", start, constraint=constraint)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)


CALLS = {
    "fit": partial(fit, epochs=1, batch_size=20),
    "evaluate": evaluate,
    "log_likelihood": partial(log_likelihood, samples=2),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"start": torch.zeros(())}, r"holds 'mean' with shape \(3,\), but the program asks for \(\): call pyro.clear"),
        ({"constraint": constraints.positive}, r"with constraint Real\(\), but the program asks for GreaterThan"),
    ],
    ids=["shape", "constraint"],
)
def test_a_parameter_of_the_store_is_the_one_that_the_program_asks_for(other, message, call):
    x = torch.randn(40, 3)
    evaluate(mean_of, lambda _: None, x)
    fit(mean_of, lambda _: None, x, epochs=1, batch_size=20)
    fit(mean_of, lambda _: None, x, epochs=0, batch_size=20)
    with pytest.raises(ValueError, match=message) as error:
        CALLS[call](partial(mean_of, **other), lambda _: None, x)
    assert "\n" not in str(error.value)


class PyroCode(PyroModule):
    """A model and a guide in modules of Pyro's, with parameters of both its kinds."""

    def __init__(self, name, is_guide=False):
        super().__init__(name)
        self.layer, self.is_guide = PyroModule[nn.Linear](3, 3), is_guide
        self.scale = PyroParam(torch.ones(3), constraint=constraints.positive)

    def forward(self, x):
        with pyro.plate("data", len(x)):
            if self.is_guide:
                return pyro.sample("z", dist.Normal(self.layer(x), self.scale).to_event(1))
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(self.layer(z), self.scale).to_event(1), obs=x)


@pytest.mark.parametrize("local", [False, True])
def test_every_parameter_of_pyros_modules_is_trained_or_the_module_refused(local):
    """Pyro joins them by name, so that the layers of the second module of a name would stay as they are."""
    x, refused = torch.randn(40, 3), []
    with pyro.settings.context(module_local_params=local):
        for names in (("model", "guide"), ("model", "guide"), ("", "")):
            torch.manual_seed(0)
            pair = PyroCode(names[0]), PyroCode(names[1], is_guide=True)
            before = [parameter.clone() for module in pair for parameter in module.parameters()]
            try:
                fit(*pair, x, epochs=1, batch_size=40)
            except ValueError as error:
                refused.append(str(error))
                continue
            after = [parameter for module in pair for parameter in module.parameters()]
            assert not any(torch.equal(*values) for values in zip(before, after, strict=True))
    assert [message.partition(" of PyroCode with that in ")[2].partition(":")[0] for message in refused] == (
        [] if local else ["Pyro's parameter store, of another module or training", "another module"]
    )


@pytest.mark.parametrize("kind", [AutoDelta, AutoNormal, AutoLowRankMultivariateNormal])
def test_a_second_autoguide_neither_takes_over_the_first_nor_changes_it(kind):
    x = torch.randn(20, 3)

    def model(x):
        mean = pyro.sample("mean", dist.Normal(torch.zeros(3), 10.0).to_event(1))
        with pyro.plate("data", 20, subsample_size=len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(1), obs=x)

    first, second = kind(model), kind(model)
    fit(model, first, x + 9, epochs=1, batch_size=20)
    for call in CALLS.values():
        with pytest.raises(ValueError, match=r"Pyro's parameter store.*: call pyro\.clear_param_store\(\) first"):
            call(model, second, x)
    pyro.clear_param_store()
    before = [parameter.clone() for parameter in first.parameters()]
    fit(model, second, x, epochs=3, batch_size=20)
    assert all(torch.equal(*values) for values in zip(before, first.parameters(), strict=True))
    assert not any(torch.equal(*values) for values in zip(before, second.parameters(), strict=True))


def halving(x):
    mean_of(x.mul_(0.5))


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("model", "guide"),
    [(halving, lambda _: None), (mean_of, lambda x: x.relu_()), (mean_of, nn.ReLU(inplace=True))],
    ids=["model", "guide", "layer"],
)
def test_programs_that_change_the_data_in_place_are_refused_and_the_data_stay(model, guide, call):
    x = torch.randn(40, 3)
    before = x.clone()
    with pytest.raises(ValueError, match=r"the programs change the batch in place, .*: begin with x = x\.clone"):
        CALLS[call](model, guide, x)
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    "transform",
    [lambda x: x[::2], lambda x: torch.cat([x, x]), torch.sum],
    ids=["fewer", "more", "a number"],
)
def test_a_transform_that_returns_another_number_of_data_is_refused(transform):
    """What is reported is per datum."""
    vae, x = VAE(priors.Normal(2), encoders.Normal(3, 2), decoders.Normal(2, 3)), torch.zeros(7, 3)
    message = r"the transform makes .* of tensor of shape \(7, 3\): it must return as many data"
    with pytest.raises(ValueError, match=message):
        evaluate(vae.model, vae.guide, x, transform=transform)
    with pytest.raises(ValueError, match=message):
        fit(vae.model, vae.guide, x, transform=transform, batch_size=7, epochs=1)


def test_a_transform_that_makes_parts_for_programs_of_one_argument_is_refused():
    vae = VAE(priors.Normal(2), encoders.Normal(3, 2), decoders.Normal(2, 3))
    with pytest.raises(TypeError, match=r"the model takes \(x\), but a batch is \(tensor of shape"):
        evaluate(vae.model, vae.guide, torch.zeros(7, 3), transform=lambda x: (x, x))


@pytest.mark.parametrize("call", ["fit", "evaluate"])
def test_a_transform_that_changes_the_data_in_place_is_refused_and_the_data_stay(call):
    x = torch.randn(40, 3)
    before = x.clone()
    with pytest.raises(ValueError, match=r"the transform changes the batch in place, .*: begin with x = x\.clone"):
        CALLS[call](mean_of, lambda _: None, x, transform=lambda x: x.add_(torch.rand_like(x)))
    assert torch.equal(x, before)
    CALLS[call](mean_of, lambda _: None, x, transform=lambda x: x.clone().add_(1))
    assert torch.equal(x, before)


def test_the_check_leaves_no_parameter_behind_and_changes_none():
    kept = pyro.param("kept", torch.tensor([1.0]))

    def guide(x):
        with pyro.plate("data", len(x)):
            loc = pyro.param("loc", torch.zeros(len(x), D)) * pyro.param("kept")
            pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    check_programs(own(normal, normal, pixels)[0], guide, grey(), batch_size=10)
    assert list(pyro.get_param_store().keys()) == ["kept"]
    assert pyro.param("kept").unconstrained() is kept.unconstrained()
    SVI(own(normal, normal, pixels)[0], guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO()).step(grey())
    assert pyro.param("loc").shape == (10, D)


# What programs are made of


def test_modules_are_found_behind_methods_handlers_and_calls():
    one, other = vae(), nn.Linear(2, 2)
    wrapped = poutine.scale(LocalModules()(one.model), scale=2.0)
    assert modules_of(wrapped, one.guide, other) == [one, other]
    assert modules_of(lambda x: x, print) == []


NETS = {"one": [nn.Linear(2, 2)]}


@lru_cache
def hidden():
    return nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6))


class Holder:
    """No module, but it holds one."""

    def __init__(self, net):
        self.net = net

    def model(self, x):
        return self.net(x)


class Loose(nn.Module):
    """A module that holds another in a list, unregistered."""

    def __init__(self, net):
        super().__init__()
        self.nets = [net]

    def forward(self, x):
        return self.nets[0](x)


def by_name(x):
    return NETS["one"][0](x)


@pytest.mark.parametrize(
    "program",
    [
        lambda net: lambda x: net(x),
        lambda net: lambda x: (lambda y: net(y))(x),
        lambda net: lambda x: net.forward(x),
        lambda net: lambda x, own=net: own(x),
        lambda net: lambda x, *, own=net: own(x),
        lambda net: partial(lambda own, x: own(x), net),
        lambda net: partial(lambda x, own: own(x), own=net),
        lambda net: Holder(net).model,
        lambda net: lambda x, held={"a": (net, 1)}: held["a"][0](x),
        lambda net: poutine.scale(lambda x: Holder(net).model(x), scale=2.0),
    ],
    ids=["closure", "nested", "method", "default", "keyword", "partial", "named", "object", "dict", "handler"],
)
def test_modules_are_found_wherever_a_program_has_them(program):
    net = nn.Linear(2, 2)
    assert modules_of(program(net)) == [net]


def test_modules_are_found_among_globals_and_in_modules_that_do_not_register_them():
    assert modules_of(by_name) == NETS["one"]
    assert modules_of(lambda x: by_name(x)) == NETS["one"]
    loose = Loose(NETS["one"][0])
    assert modules_of(loose) == [loose, *NETS["one"]]
    whole = nn.Sequential(nn.Linear(2, 2))
    assert modules_of(lambda x: whole(x), lambda x: whole[0](x)) == [whole]


def test_a_module_that_is_called_but_not_found_is_refused_if_it_has_a_mode_or_buffers():
    model, guide = own(normal, normal, pixels)

    def through(module):
        def program(x):
            module()(x.flatten(1)[:, :6])
            guide(x)

        return program

    with pytest.raises(TypeError, match=r"the programs call a module, BatchNorm1d, that is not found"):
        check_programs(model, through(lambda: hidden()), grey())
    with pytest.raises(TypeError, match=r"the programs call a module, Dropout, that is not found"):
        check_programs(model, through(lambda: nn.Dropout(0.5)), grey())
    check_programs(model, through(lambda: nn.Softplus()), grey())


class Slotted:
    """An object without a dictionary."""

    __slots__ = ("net",)

    def __init__(self, net):
        self.net = net


class Drops(nn.Module):
    """A module whose mode is read by another method than the one that is called."""

    def forward(self, x):
        return self.drop(x)

    def drop(self, x):
        return nn.functional.dropout(x, 0.9, self.training)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Using `torch.compile")  # beside hooks of all modules
@pytest.mark.parametrize("in_place", [True, False])
def test_a_module_that_is_compiled_is_trained_as_it_is(in_place):
    def trained(*, compiled):
        torch.manual_seed(0)
        vae = VAE(priors.Normal(D), encoders.Normal(8, D), decoders.Normal(D, 8))
        vae.decoder.network = nn.Sequential(nn.Dropout(0.5), vae.decoder.network)  # it has a mode
        if compiled and in_place:
            vae.decoder.network.compile(backend="aot_eager")
        elif compiled:
            vae.decoder.network = torch.compile(vae.decoder.network, backend="aot_eager")
        x = torch.randn(40, 8, generator=torch.Generator().manual_seed(1))
        history = fit(vae.model, vae.guide, x, validation=x, epochs=1, batch_size=20, engine="eager")
        return history.column("train_loss") + history.column("test_loss")

    assert trained(compiled=True) == pytest.approx(trained(compiled=False), rel=1e-5)


def test_modules_in_slots_are_found_and_a_mode_is_seen_in_any_method():
    held, hidden = Slotted(Drops()), {Drops(): 0}
    assert modules_of(lambda x: held.net(x)) == [held.net]

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(next(iter(hidden))(x), 1.0).to_event(1), obs=x)

    with pytest.raises(TypeError, match=r"the programs call a module, Drops, that is not found from them"):
        check_programs(model, lambda _: None, torch.zeros(4, 3))


def test_data_follow_the_device_and_the_precision_of_the_modules():
    one, x = vae(), torch.zeros(2, 3)
    assert as_input(x, one.double().model, one.guide).dtype == torch.float64
    assert as_input(x, lambda x: x) is x
    whole = nn.ParameterList(
        [nn.Parameter(torch.tensor(3), requires_grad=False), nn.Parameter(torch.zeros(1).double())]
    )
    assert as_input(x + 0.5, whole).tolist() == (x + 0.5).tolist()  # not rounded to the whole numbers of the first
    assert as_input(x, whole).dtype == torch.float64
    assert as_input(x, vae().to("meta").model).device == torch.device("meta")


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_set_on_every_module_and_put_back_after_an_error(training):
    one = vae()
    one.encoder.eval()
    before = [module.training for module in one.modules()]

    def within():
        with mode(training, one.model, one.guide):
            assert {module.training for module in one.modules()} == {training}
            raise KeyError

    with pytest.raises(KeyError):
        within()
    assert [module.training for module in one.modules()] == before
    assert set(before) == {True, False}


def test_the_seed_holds_within_and_the_state_is_put_back():
    torch.manual_seed(5)
    expected = torch.rand(3)
    state = torch.get_rng_state()
    with seeded(5, torch.device("cpu")):
        assert torch.equal(torch.rand(3), expected)
        torch.rand(4)
    assert torch.equal(torch.get_rng_state(), state)


def test_paired_traces_share_the_guides_codes_and_have_no_plates():
    one, x = vae(), grey()
    model_trace, guide_trace = paired_traces(one.model, one.guide, x)
    assert model_trace.nodes["z"]["value"] is guide_trace.nodes["z"]["value"]
    assert model_trace.stochastic_nodes == guide_trace.stochastic_nodes == ["z"]
    assert model_trace.observation_nodes == ["x"]


def test_a_real_encoder_is_refused_beside_a_positive_prior_also_where_its_draws_are_positive_by_chance():
    encoder = encoders.Delta(6, 2)
    torch.nn.init.zeros_(encoder.network.layers[-1].weight)
    torch.nn.init.ones_(encoder.network.layers[-1].bias)
    vae = VAE(priors.Exponential(2), encoder, decoders.Normal(2, 6))
    with pytest.raises(ValueError, match=r"the prior has support .*they must match"):
        check_programs(vae.model, vae.guide, torch.rand(4, 6))


def test_a_guide_that_draws_what_is_not_finite_is_told_so():
    overflow = [
        dist.transforms.AffineTransform(loc, 1e38) for loc in (0.0, 0.0, math.inf)
    ]  # inf - inf for half of them

    def program(transforms, x, obs=None):
        with pyro.plate("data", len(x)):
            normal = dist.Normal(torch.zeros(2), 1.0).to_event(1)
            pyro.sample("z", dist.TransformedDistribution(normal, transforms))
            if obs is not None:
                pyro.sample("x", normal, obs=obs)

    with pytest.raises(
        ValueError, match=r"site 'z' of the model gets a draw of (-?inf|nan) \(of the guide\): start at"
    ):
        check_programs(lambda x: program([], x, x), partial(program, overflow), torch.zeros(6, 2))


@pytest.mark.parametrize(
    ("guide_of", "may_leave"), [(AutoNormal, False), (AutoLowRankMultivariateNormal, False), (AutoDelta, True)]
)
def test_points_that_training_may_move_out_of_their_support_are_told_from_transformed_draws(guide_of, may_leave):
    def model(x):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Exponential(rate), obs=x)

    def by_hand(_):
        pyro.sample("rate", dist.Delta(pyro.param("point", torch.tensor(1.0))))

    x = torch.rand(8)
    guide = guide_of(model)
    guide(x)
    assert check_points(model, guide, x) == may_leave
    assert check_points(model, by_hand, x)


@pytest.mark.parametrize("infer", [{}, {"is_auxiliary": True}], ids=["plain", "auxiliary"])
def test_a_site_that_the_guide_alone_draws_is_refused(infer):
    """The switch of a mixture: minus its log-probability would raise each bound by log 2, above log p(x)."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        scale = pyro.param("scale", torch.tensor([0.5, 0.9]))
        with pyro.plate("data", len(x)):
            switch = pyro.sample("switch", dist.Bernoulli(torch.tensor(0.5)), infer=infer)
            pyro.sample("z", dist.Normal(x / 2, scale[switch.long(), None]).to_event(1))

    for run in (fit, evaluate, log_likelihood):
        with pytest.raises(ValueError, match=r"the guide draws site 'switch', but the model does not, .* sum it out"):
            run(model, guide, torch.zeros(4, 3))


@pytest.mark.parametrize("infer", [{}, {"is_auxiliary": True}], ids=["plain", "auxiliary"])
def test_a_site_that_the_guide_alone_draws_is_refused_beside_a_point_that_is_no_function_of_it(infer):
    """Minus its entropy, of log 5 + 1.42 nats, would be taken off the loss."""

    def model(x):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("data", 8, subsample_size=len(x)):
            pyro.sample("x", dist.Exponential(rate), obs=x[:, 0])

    def point(x):
        pyro.sample("a", dist.Normal(torch.zeros(()), 5.0), infer=infer)
        pyro.sample("rate", dist.Delta(pyro.param("point", torch.tensor(1.0)) + x.sum()))

    def function(_):
        a = pyro.sample("a", dist.Normal(torch.zeros(()), 5.0), infer={"is_auxiliary": True})
        pyro.sample("rate", dist.Delta(a.exp(), log_density=-a))

    def log_normal(_):
        pyro.sample("rate", dist.LogNormal(torch.zeros(()), 5.0))

    x = torch.rand(8, 1)
    for run in (fit, evaluate):
        with pytest.raises(
            ValueError, match=r"the guide draws site 'a', but the model does not, .* let the model draw"
        ):
            run(model, point, x)
    assert evaluate(model, function, x) == pytest.approx(evaluate(model, log_normal, x))


def test_a_site_that_the_guide_draws_where_the_model_observes_it_is_refused():
    def model(x, y):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(torch.tensor(0.3)), obs=y)
            pyro.sample("x", dist.Normal(y, 1.0), obs=x)

    def guide(x, _):
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(logits=x))

    x = torch.linspace(0, 1, 4).round()
    assert evaluate(model, guide, DataLoader([(x, None)], batch_size=None)).loss > 0
    for given in ((x, x), DataLoader([(x, None), (x, x)], batch_size=None)):
        with pytest.raises(ValueError, match=r"draws site 'y', but the model observes it, .* where it is observed"):
            evaluate(model, guide, given)


@pytest.mark.parametrize(
    ("transform", "words"),
    [
        (
            lambda x: x * nn.Parameter(torch.ones(())),
            "the transform computes with parameters, which would not be trained",
        ),
        (lambda x: x.long(), "normal_kernel.* not implemented for 'Long'.*: give x.float()"),
    ],
    ids=["with parameters", "of integers"],
)
def test_transforms_that_the_programs_cannot_use_are_refused_with_the_fix(transform, words):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x * pyro.param("slope", torch.tensor(0.5)), 1.0).to_event(1))

    with pytest.raises(ValueError, match=words):
        fit(model, guide, torch.rand(20, 2), transform=transform)

    def frozen(x):
        with torch.no_grad():
            return x * nn.Parameter(torch.ones(()))

    assert len(fit(model, guide, torch.rand(20, 2), transform=frozen, epochs=1)) == 2


def adding_one(z):
    z += 1
    return z


@pytest.mark.parametrize(
    "layer",
    [nn.ReLU(inplace=True), nn.Sequential(nn.Flatten(), nn.Dropout(0.5, inplace=True)), adding_one],
    ids=["a layer", "dropout", "an operator"],
)
def test_programs_that_change_a_draw_in_place_are_refused(layer):
    """Pyro would take log p(z) and log q(z) at the changed value, so that such a bound is not below the evidence."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(layer(z) if changing else layer(z.clone()), 1.0).to_event(1), obs=x)

    def guide(x):
        scale = pyro.param("scale", torch.tensor(0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, scale).to_event(1))

    x = torch.rand(1000, 1, generator=torch.Generator().manual_seed(0))
    for call in (evaluate, fit):
        changing = True
        with pytest.raises(ValueError, match=r"the programs change site 'z' in place, .* z.clone\(\)"):
            call(model, guide, x)
        changing = False
        if layer is adding_one:  # E q(z) of (z + 1 - x)^2 / 2, and the KL between normals
            reconstruction = ((1 - x / 2) ** 2 / 2 + 0.125 + math.log(2 * math.pi) / 2).mean().item()
            kl = torch.distributions.kl_divergence(dist.Normal(x / 2, 0.5), dist.Normal(0.0, 1.0)).mean().item()
            assert evaluate(model, guide, x).loss == pytest.approx(reconstruction + kl, abs=0.1)


def test_dropout_in_place_of_the_batch_is_refused():
    """It would change what the model observes, in training alone."""

    def network(_, out):
        return nn.Sequential(nn.Flatten(), nn.Dropout(0.5, inplace=True), nn.Linear(6, 4), nn.Unflatten(-1, out))

    vae = VAE(priors.Normal(2), encoders.Normal(6, 2, network), decoders.Normal(2, 6))
    with pytest.raises(ValueError, match="the programs change the batch in place"):
        fit(vae.model, vae.guide, torch.rand(20, 6))


class DropsInPlace(nn.Module):
    def __init__(self, sizes):
        super().__init__()
        self.layer = nn.Linear(*sizes)

    def forward(self, value):
        return self.layer(nn.functional.dropout(value, 0.5, self.training, inplace=True))


@pytest.mark.parametrize(("where", "words"), [("encoder", "change the batch in place"), ("decoder", "change site 'z'")])
def test_dropout_in_place_by_a_function_is_refused_in_the_first_step(where, words):
    """In evaluation mode it changes nothing."""
    encode = (DropsInPlace if where == "encoder" else lambda sizes: nn.Linear(*sizes))((6, 2))
    decode = (DropsInPlace if where == "decoder" else lambda sizes: nn.Linear(*sizes))((2, 6))

    def model(x):
        pyro.module("decode", decode)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decode(z), 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("encode", encode)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encode(x), 1.0).to_event(1))

    x = torch.rand(20, 6)
    with pytest.raises(ValueError, match=words):
        fit(model, guide, x, batch_size=5)
