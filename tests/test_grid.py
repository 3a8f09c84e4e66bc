"""The product of the parts: what fits trains, and what does not is refused by name.

All pairs of prior and encoder that live on one support are trained with every decoder, and with every objective, and so
is a random sample of the whole product.
"""

import itertools
import random
from functools import partial

import pytest
import torch
from all_cases import cases
from partners import accepted, of_parts
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO

from pyro_vae import data, decoders, encoders, evaluate, fit, objectives, priors
from pyro_vae.networks import MLP

D, SHAPE, NETWORK = 3, (8,), partial(MLP, hidden=(8,))
OBJECTIVES = [
    Trace_ELBO(),
    TraceMeanField_ELBO(),
    TraceGraph_ELBO(),
    TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False),
    objectives.IWAE(3),
    objectives.DReG(3),
    objectives.Renyi(0.5, 3),
    objectives.CIWAE(0.5, 3),
    objectives.MIWAE(2, 2),
    objectives.PIWAE(2, 2),
    objectives.VIMCO(3),
    objectives.Thermodynamic(3),
    objectives.StickingTheLanding(),
    objectives.FreeBits(),
    objectives.InfoVAE(),
    objectives.BetaTC(size=12),
]
NAMES = [type(objective).__name__ for objective in OBJECTIVES]


def one_of_each(kind):
    """The first case of every family."""
    return list({case.family: case for case in reversed(cases(kind))}.values())


def grey():
    return data.load("digits").train[:12, 0, 3, :]


def assembled(prior, encoder, decoder):
    torch.manual_seed(0)
    encoder_part = encoder.make(D, shape=SHAPE, network=NETWORK)
    vamp = prior.family is priors.VampPrior
    prior_part = priors.VampPrior(encoder_part, components=4) if vamp else prior.make(D)
    return of_parts(prior_part, encoder_part, decoder.make(encoder.event(D), shape=SHAPE, network=NETWORK))


def support_of(case):
    """What a code of a prior or an encoder is: its shape, and which typical draws its support accepts."""
    distribution = case.make(D, **({} if case.kind == "priors" else {"shape": SHAPE}))
    distribution = distribution() if case.kind == "priors" else distribution(torch.zeros(SHAPE))
    draws = distribution.sample((50,))
    if case.family is encoders.Delta:  # of which all draws are one, but where is a matter of chance
        draws = torch.randn_like(draws)
    return distribution.event_shape, distribution.support, draws


def compatible(prior, encoder):
    if prior.family is priors.VampPrior:  # a mixture of any encoder's distributions, but not of points
        return encoder.family is not encoders.Delta
    (shape, support, draws), (other_shape, other_support, other_draws) = support_of(prior), support_of(encoder)
    if shape != other_shape:
        return False
    return bool(support.check(other_draws).all() and other_support.check(draws).all())


PRIORS, ENCODERS, DECODERS = (one_of_each(kind) for kind in ("priors", "encoders", "decoders"))
torch.manual_seed(0)
PAIRS = [pair for pair in itertools.product(PRIORS, ENCODERS) if compatible(*pair)]
OTHERS = [pair for pair in itertools.product(PRIORS, ENCODERS) if pair not in PAIRS]
PLAIN = next(case for case in DECODERS if case.family is decoders.Normal)


def independent(distribution):
    return type(distribution).__name__ == "Independent" and not distribution.base_dist.event_shape


def refusal(objective, prior, encoder):
    """Words of an objective's refusal of a prior or an encoder; none where it takes them."""
    vae = assembled(prior, encoder, PLAIN)
    posterior = vae.encoder(torch.zeros(SHAPE))
    if not posterior.has_rsample:
        if isinstance(objective, TraceMeanField_ELBO):
            return "TraceMeanField_ELBO does not take these programs"
        if isinstance(objective, objectives.Objective) and objective.pathwise:
            return "needs a pathwise sampler"
    taken_apart = {objectives.FreeBits: (vae.prior(), posterior), objectives.BetaTC: (posterior,)}
    if not all(map(independent, taken_apart.get(type(objective), ()))):
        return "needs independent latent dimensions"
    return ""


def train(prior, encoder, decoder, objective):
    """Three steps on all data; the loss before and after, on the same noise."""
    vae = assembled(prior, encoder, decoder)
    x = accepted(getattr(vae.decoder, "decoder", vae.decoder), grey())
    settings = {"loss": objective, "seed": 1}
    optimizer = partial(torch.optim.Adam, lr=3e-3)
    before = evaluate(vae.model, vae.guide, x, **settings).loss
    history = fit(vae.model, vae.guide, x, loss=objective, epochs=3, batch_size=len(x), optimizer=optimizer)
    assert all(torch.isfinite(torch.tensor(history.column("train_loss"))))
    return before, evaluate(vae.model, vae.guide, x, **settings).loss, vae.encoder(x[:1]).has_rsample


def assert_trains(prior, encoder, decoder, objective):
    before, after, pathwise = train(prior, encoder, decoder, objective)
    if pathwise and isinstance(objective, Trace_ELBO | TraceMeanField_ELBO | objectives.IWAE):
        assert after < before + 0.1 * abs(before)


def test_there_is_a_partner_for_every_prior_and_every_encoder():
    assert {prior for prior, _ in PAIRS} == set(PRIORS)
    alone = {encoder.family for encoder in ENCODERS} - {encoder.family for _, encoder in PAIRS}
    assert not alone


@pytest.mark.parametrize("decoder", DECODERS, ids=repr)
def test_every_pair_trains_with_every_decoder(decoder):
    for prior, encoder in PAIRS:
        assert_trains(prior, encoder, decoder, Trace_ELBO())


@pytest.mark.parametrize("objective", OBJECTIVES, ids=NAMES)
def test_every_pair_trains_with_every_objective_or_is_refused_by_name(objective):
    for prior, encoder in PAIRS:
        words = refusal(objective, prior, encoder)
        if words:
            with pytest.raises(ValueError, match=words):
                train(prior, encoder, PLAIN, objective)
        else:
            assert_trains(prior, encoder, PLAIN, objective)


def test_a_sample_of_the_whole_product_trains():
    """100 of all pairs with decoders and objectives, drawn with a fixed seed."""
    product = [(*pair, decoder, objective) for pair in PAIRS for decoder in DECODERS for objective in OBJECTIVES]
    for prior, encoder, decoder, objective in random.Random(0).sample(product, 100):  # noqa: S311
        if not refusal(objective, prior, encoder):
            train(prior, encoder, decoder, objective)


@pytest.mark.parametrize("encoder", ENCODERS, ids=repr)
def test_every_pair_on_two_supports_is_refused_by_name(encoder):
    for prior, other in OTHERS:
        if other is encoder:
            with pytest.raises((ValueError, TypeError), match=r"prior|encoder|support"):
                train(prior, encoder, PLAIN, Trace_ELBO())


@pytest.mark.parametrize("decoder", DECODERS, ids=repr)
def test_data_outside_a_decoders_support_are_refused_by_name(decoder):
    vae = assembled(*PAIRS[0], decoder)
    x = accepted(getattr(vae.decoder, "decoder", vae.decoder), grey())
    support = vae.decoder(torch.zeros(1, D)).support
    bad = [version for version in (grey() / 3, -1 - grey()) if not support.check(version).all()]
    for version in bad:
        with pytest.raises(ValueError, match="outside the support"):
            fit(vae.model, vae.guide, version, epochs=0, batch_size=len(x))
