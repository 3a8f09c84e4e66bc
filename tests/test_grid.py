"""The product of the parts: what fits trains, and what does not is refused by name.

All pairs of prior and encoder that live on one support are trained with every decoder, and with every objective, and so
is a random sample of the whole product, of which `python -m benchmarks.grid` trains all.
"""

import json
import math
import random
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import combinations
import pytest
import torch
from combinations import (
    DECODERS,
    ENCODERS,
    OBJECTIVES,
    OTHERS,
    PAIRS,
    PLAIN,
    PRIORS,
    TRIPLES,
    D,
    assembled,
    data_for,
    grey,
    outcomes,
    refusal,
)
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO

from pyro_vae import evaluate, fit, objectives

NAMES = [type(objective).__name__ for objective in OBJECTIVES]


def train(vae, objective):
    """Three steps on all data; the loss before and after, on the same noise."""
    x = data_for(vae, grey())
    optimizer = partial(torch.optim.Adam, lr=3e-3)
    start = {name: value.clone() for name, value in vae.named_parameters()}
    settings = {"loss": objective, "batch_size": len(x), "seed": 1}
    history = fit(vae.model, vae.guide, x, epochs=3, optimizer=optimizer, **settings)
    assert all(torch.isfinite(torch.tensor(history.column("train_loss"))))
    assert not [name for name, value in vae.named_parameters() if torch.equal(value, start[name])]  # all have moved
    return history[0]["train_loss"], evaluate(vae.model, vae.guide, x, **settings).loss


def assert_trains(vae, objective):
    before, after = train(vae, objective)
    pathwise = vae.encoder(data_for(vae, grey())[:1]).has_rsample
    if pathwise and isinstance(objective, Trace_ELBO | TraceMeanField_ELBO | objectives.IWAE):
        assert after < before + 0.1 * abs(before)


def test_there_is_a_partner_for_every_prior_and_every_encoder():
    assert {prior for prior, _ in PAIRS} == set(PRIORS)
    alone = {encoder.family for encoder in ENCODERS} - {encoder.family for _, encoder in PAIRS}
    assert not alone


def test_every_objective_of_the_package_is_in_the_product():
    public = {name for name in objectives.__all__ if isinstance(getattr(objectives, name), type)}
    named = {name for name in public if issubclass(getattr(objectives, name), objectives.Objective)}
    assert named - {"Objective"} <= set(NAMES)


def test_a_step_that_leaves_a_part_without_a_gradient_has_failed():
    vae = assembled(*PAIRS[0], PLAIN)
    gradients = [torch.ones_like(value) for value in vae.parameters()]
    combinations.check_gradients(vae, gradients)
    with pytest.raises(AssertionError, match=r"no gradient reaches decoder\.\S+"):
        combinations.check_gradients(vae, [*gradients[:-1], None])
    unmoved = [0 * value if name.startswith("encoder.") else value for name, value in vae.named_parameters()]
    with pytest.raises(AssertionError, match=r"no gradient reaches encoder$"):
        combinations.check_gradients(vae, unmoved)


every_pair = pytest.mark.parametrize(("prior", "encoder"), PAIRS, ids=repr)


@every_pair
@pytest.mark.parametrize("decoder", DECODERS, ids=repr)
def test_every_pair_trains_with_every_decoder(prior, encoder, decoder):
    assert_trains(assembled(prior, encoder, decoder), Trace_ELBO())


@every_pair
@pytest.mark.parametrize("objective", OBJECTIVES, ids=NAMES)
def test_every_pair_trains_with_every_objective_or_is_refused_by_name(prior, encoder, objective):
    vae = assembled(prior, encoder, PLAIN)
    words = refusal(objective, vae)
    if words:
        with pytest.raises(ValueError, match=words):
            train(vae, objective)
    else:
        assert_trains(vae, objective)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(20))
def test_a_sample_of_the_whole_product_trains_or_is_refused_by_name(part):
    """4 priors, encoders and decoders that fit, drawn with a fixed seed, with every objective: 64 combinations."""
    x, found = grey(), Counter()
    for triple in random.Random(0).sample(TRIPLES, 80)[part::20]:  # noqa: S311
        for objective, (outcome, why) in zip(OBJECTIVES, outcomes(triple, OBJECTIVES, x), strict=True):
            assert outcome != "failed", (triple, objective, why)
            found[outcome] += 1
    assert found["decreased"] > 0.9 * (found["decreased"] + found["trained"])


def test_what_is_not_refused_as_it_should_be_or_not_finite_has_failed(monkeypatch):
    triple = (*PAIRS[0], PLAIN)
    with monkeypatch.context() as patch:
        patch.setattr(combinations, "refusal", lambda *_: "no such words")
        assert list(outcomes(triple, [Trace_ELBO()], grey())) == [("failed", "it is not refused: no such words")]
    with monkeypatch.context() as patch:
        patch.setattr(combinations, "three_steps", lambda *_: (1.0, math.nan))
        assert list(outcomes(triple, [Trace_ELBO()], grey())) == [("failed", "from 1.0 to nan")]
    flow = next((*pair, PLAIN) for pair in PAIRS if refusal(objectives.FreeBits(), assembled(*pair, PLAIN)))
    monkeypatch.setattr(combinations, "refusal", lambda *_: "")
    ((outcome, why),) = outcomes(flow, [objectives.FreeBits()], grey())
    assert outcome == "failed"
    assert why.startswith("ValueError: FreeBits needs independent latent dimensions")


@pytest.mark.slow
def test_the_command_prints_a_table_and_keeps_each_combination(tmp_path):
    command = [sys.executable, "-m", "benchmarks.grid", "--part", f"1/{len(TRIPLES)}", "--json", tmp_path / "grid.json"]
    found = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True)
    last = [int(cell) for cell in found.stdout.splitlines()[-1].split("|")[2:-1]]
    assert last[0] + last[2] == len(OBJECTIVES)
    rows = json.loads((tmp_path / "grid.json").read_text())
    assert [row[3] for row in rows] == NAMES
    assert sum(row[4] == "decreased" for row in rows) == last[1]


@pytest.mark.parametrize("encoder", ENCODERS, ids=repr)
def test_every_pair_on_two_supports_is_refused_by_name(encoder):
    for prior, other in OTHERS:
        if other is encoder:
            with pytest.raises((ValueError, TypeError), match=r"prior|encoder|support"):
                train(assembled(prior, encoder, PLAIN), Trace_ELBO())


@pytest.mark.parametrize("decoder", DECODERS, ids=repr)
def test_data_outside_a_decoders_support_are_refused_by_name(decoder):
    vae = assembled(*PAIRS[0], decoder)
    x = data_for(vae, grey())
    support = vae.decoder(torch.zeros(1, D)).support
    bad = [version for version in (grey() / 3, -1 - grey()) if not support.check(version).all()]
    for version in bad:
        with pytest.raises(ValueError, match="outside the support"):
            fit(vae.model, vae.guide, version, epochs=0, batch_size=len(x))
