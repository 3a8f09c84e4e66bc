"""The comparison finds equality where there is equality, and difference where there is difference."""

import json
import math
from functools import partial

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_vae import VAE, compare, data, decoders, encoders, priors
from pyro_vae.diagnostics import comparison
from pyro_vae.diagnostics.comparison import TOLERANCE, controls, identity, speed, trajectory, twin_of, why_the_trick
from pyro_vae.networks import ConvDecoder, ConvEncoder

SHAPE = (1, 8, 8)


def small_vae(decoder=None, seed=0):
    torch.manual_seed(seed)
    return VAE(priors.Normal(3), encoders.Normal(SHAPE, 3), decoder or decoders.Bernoulli(3, SHAPE, grey=True))


@pytest.fixture(scope="module")
def x():
    return data.load("digits").train


def decoder_cases():
    return [
        decoders.Bernoulli(3, SHAPE, grey=True),
        decoders.Bernoulli(3, SHAPE, network=ConvDecoder, grey=True),
        decoders.Normal(3, SHAPE, scale=0.3),
    ]


@pytest.mark.parametrize("decoder", decoder_cases(), ids=["cross-entropy", "convolutional", "normal"])
def test_losses_and_gradients_agree_to_rounding(decoder, x):
    for found in identity(small_vae(decoder), x[:50]).values():
        assert found["loss_relative_difference"] < 1e-13
        assert found["max_gradient_relative_difference"] < 1e-12


def test_every_spoiled_twin_is_detected(x):
    found = controls(small_vae(), x[:50])
    assert len(found) == 6
    assert all(control["detected"] for control in found.values())
    assert all(max(c["loss_relative_difference"], c["max_gradient_relative_difference"]) > 1e-4 for c in found.values())


def test_an_unspoiled_twin_would_not_be_detected(x, monkeypatch):
    # With the variance taken for the variance it should be, the control is no control: detected must turn false.
    unspoiled = comparison.baseline.VAE.negative_elbo
    monkeypatch.setattr(comparison, "_variance_for_standard_deviation", lambda twin, x, eps: unspoiled(twin, x, eps))
    assert not controls(small_vae(), x[:50])["variance taken for standard deviation"]["detected"]


def test_identity_fails_where_the_encoder_is_not_what_the_twin_has(x):
    vae = small_vae()
    found = comparison._difference(
        vae, x[:50], 0, comparison.Trace_ELBO(), lambda twin, x, eps: twin.negative_elbo(x, eps + 1e-6)
    )
    assert max(found.values()) > TOLERANCE


def test_trajectories_stay_together(x):
    differences = trajectory(small_vae(), x, steps=60, batch_size=100)
    assert len(differences) == 60
    assert max(differences) < 1e-12


def test_trajectories_part_where_the_twin_sees_other_noise(x, monkeypatch):
    noise = comparison._noise
    monkeypatch.setattr(comparison, "_noise", lambda vae, x, generator=None: 1.001 * noise(vae, x, generator))
    assert max(trajectory(small_vae(), x, steps=10, batch_size=100)) > 1e-6


def test_compare_leaves_vae_and_random_state_alone(x):
    vae = small_vae()
    before = [parameter.detach().clone() for parameter in vae.parameters()]
    state = torch.get_rng_state()
    compare(vae, x[:40], steps=3, draws=4, rounds=1, batch_size=20)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(before, vae.parameters(), strict=True))


@pytest.mark.slow
def test_score_function_agrees_with_the_pathwise_gradient_at_a_larger_variance(x):
    found = why_the_trick(small_vae(), x[:8], draws=1000)
    # |z| < 4 over 1,000 draws of each; the means themselves are compared with one another, in standard errors.
    assert abs(found["z"]) < 4
    assert found["variance_ratio"] > 10
    for name in ("pathwise", "score_function"):
        projections = torch.tensor(found[name]["projections"], dtype=torch.float64)
        assert found[name]["mean"] == pytest.approx(projections.mean().item(), rel=1e-9)
        assert found[name]["standard_error"] == pytest.approx(projections.std().item() / math.sqrt(1000), rel=1e-9)
    assert found["pathwise"]["mean"] > 10 * found["pathwise"]["standard_error"]


@pytest.mark.slow
def test_the_agreement_is_lost_where_the_score_function_is_biased(x, monkeypatch):
    # An encoder that detaches only the sample, and keeps the pathwise estimator, has the wrong mean.
    class Detached(dist.Normal):
        def rsample(self, sample_shape=()):
            return super().rsample(torch.Size(sample_shape)).detach()

    class DetachedEncoder(encoders.ScoreFunction):
        def forward(self, x):
            normal = self.encoder(x).base_dist
            return Detached(normal.loc, normal.scale).to_event(1)

    monkeypatch.setattr(comparison.encoders, "ScoreFunction", DetachedEncoder)
    assert abs(why_the_trick(small_vae(), x[:8], draws=1000)["z"]) > 10


def test_without_the_trick_the_reconstruction_sends_the_encoder_nothing(x):
    found = why_the_trick(small_vae(), x[:8], draws=4)
    assert found["detached_gradient_norm"] == 0
    assert found["pathwise_gradient_norm"] > 0.1


def test_speed_reports_each_program_relative_to_the_twin(x):
    found = speed(small_vae(), x, steps=4, rounds=1, batch_size=50)
    assert list(found) == ["hand-coded twin", "pyro.infer.SVI", "fit"]
    assert found["hand-coded twin"]["ratio"] == 1
    assert all(row["ms_per_step"] > 0 for row in found.values())


def test_json_and_table_hold_the_figures(x):
    found = compare(small_vae(), x[:100], steps=3, draws=4, rounds=1)
    parsed = json.loads(found.json())
    assert set(parsed) == {"identity", "controls", "trajectory", "why_the_trick", "speed"}
    assert parsed["identity"] == found.identity
    table = found.table()
    assert "KL sign flipped: detected" in table
    assert f"{found.speed['fit']['ms_per_step']:.2f}" in table
    assert all(len(line) <= 88 for line in table.splitlines())


@pytest.mark.parametrize(
    ("vae", "name"),
    [
        (VAE(priors.Normal(3, learned=True), encoders.Normal(SHAPE, 3), decoders.Bernoulli(3, SHAPE)), "prior"),
        (VAE(priors.Normal(3), encoders.Delta(SHAPE, 3), decoders.Bernoulli(3, SHAPE)), "encoder"),
        (VAE(priors.Normal(3), encoders.Normal(SHAPE, 3), decoders.ContinuousBernoulli(3, SHAPE)), "decoder"),
        (VAE(priors.Normal(3), encoders.Normal(SHAPE, 3), decoders.Normal(3, SHAPE, learned=True)), "decoder"),
    ],
)
def test_parts_that_the_twin_does_not_cover_are_refused_by_name(vae, name):
    with pytest.raises(TypeError, match=f"does not cover the {name}"):
        twin_of(vae)


def test_twin_takes_convolutional_networks():
    vae = VAE(
        priors.Normal(3),
        encoders.Normal(SHAPE, 3, network=ConvEncoder),
        decoders.Bernoulli(3, SHAPE, network=ConvDecoder, grey=True),
    )
    pairs = zip(comparison.parameters_of(vae), twin_of(vae).parameters(), strict=True)
    assert all(torch.equal(ours, theirs) and ours is not theirs for ours, theirs in pairs)


@pytest.mark.parametrize("argument", ["steps", "draws", "rounds", "batch_size"])
def test_counts_out_of_range_are_refused(argument, x):
    with pytest.raises(ValueError, match=f"{argument} must be at least"):
        compare(small_vae(), x, **{argument: 0})


class Layers(nn.Sequential):
    """A network of one hidden layer, with something after it."""

    def __init__(self, in_shape, out_shape, after):
        size = math.prod(out_shape)
        super().__init__(nn.Flatten(-3), nn.Linear(math.prod(in_shape), 16), after(), nn.ReLU(), nn.Linear(16, size))
        self.out_shape = out_shape

    def forward(self, x):
        return super().forward(x).reshape(*x.shape[:-3], *self.out_shape)


def with_layers(after):
    torch.manual_seed(0)
    encoder = encoders.Normal(SHAPE, 3, network=partial(Layers, after=after))
    return VAE(priors.Normal(3), encoder, decoders.Bernoulli(3, SHAPE, grey=True))


FEW = {"steps": 5, "draws": 4, "rounds": 1}


@pytest.mark.parametrize("training", [False, True])
def test_a_network_that_draws_noise_is_refused(training, x):
    """A relative difference of 1.4 between equal gradients was printed, as the noise had another order."""
    with pytest.raises(ValueError, match=r"^the network of the encoder draws noise, such as dropout's"):
        compare(with_layers(partial(nn.Dropout, 0.3)).train(training), x, **FEW)


def test_a_vae_in_evaluation_mode_is_compared_as_it_is_trained(x):
    """The parameters seemed to differ by 0.01 after 7 steps, as only `fit` normalized by the batch."""
    vae = with_layers(partial(nn.BatchNorm1d, 16)).eval()
    found = compare(vae, x[:256], **FEW)
    assert max(found.trajectory) < 1e-8
    assert found.identity["sampled KL"]["max_gradient_relative_difference"] < 1e-10
    assert not vae.training


def test_a_control_that_spoils_nothing_is_left_out(x):
    """The sum over one datum is its mean: NOT DETECTED was printed beside it."""
    found = compare(small_vae(), x[:1], **FEW).controls
    assert len(found) == 5
    assert all(each["detected"] for each in found.values())


def test_frozen_parameters_and_numbers_of_another_kind_are_refused(x):
    vae = small_vae()
    next(vae.decoder.parameters()).requires_grad_(False)
    with pytest.raises(ValueError, match=r"^compare differentiates all parameters, but decoder\.\S+ is frozen"):
        compare(vae, x, **FEW)
    with pytest.raises(TypeError, match=r"steps must be an integer, not 7\.0"):
        compare(small_vae(), x, steps=7.0)
    found = [compare(small_vae(), x[:20], seed=kind(3), **FEW).trajectory for kind in (int, np.int64)]
    assert found[0] == found[1]
