import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import MultivariateNormal
from torch.utils.data import ChainDataset, DataLoader, IterableDataset, TensorDataset

from pyro_vae import VAE, data, decoders, encoders, log_likelihood, priors
from pyro_vae.diagnostics.imputation import impute
from pyro_vae.diagnostics.observed import on_observed
from pyro_vae.networks import MLP, FillMissing
from pyro_vae.runtime.memory import peak_of
from tests.support.linear import probabilistic_pca

HIDDEN = [0, 2]  # the entries that are missing from each datum


def incomplete(count=60, **settings):
    """Return a linear-Gaussian VAE, data with two missing entries each, and p(x_m | x_o) in closed form."""
    exact = probabilistic_pca(latent=2, observed=5, count=count, **settings)
    weight = exact.vae.decoder.network.layers[0].weight.detach()
    covariance = weight @ weight.T + 0.25 * torch.eye(5)
    seen = [entry for entry in range(5) if entry not in HIDDEN]
    across = covariance[HIDDEN][:, seen] @ torch.linalg.inv(covariance[seen][:, seen])
    mean, of_hidden = exact.x[:, seen] @ across.T, covariance[HIDDEN][:, HIDDEN] - across @ covariance[seen][:, HIDDEN]
    x = exact.x.clone()
    x[:, HIDDEN] = torch.nan
    return exact.vae, x, mean, of_hidden, MultivariateNormal(torch.zeros(3).double(), covariance[seen][:, seen])


@pytest.mark.parametrize("by", ["importance", "gibbs", "nuts"])
def test_missing_entries_have_their_distribution_given_the_others(by):
    """100 imputations: means within 12 standard errors of independent draws, covariances within 20 % in the mean."""
    vae, x, mean, covariance, _ = incomplete(count=3 if by == "nuts" else 30, factor=3.0)
    draws = 40 if by == "nuts" else 100
    found = impute(vae.model, vae.guide, x, by=by, draws=draws, samples=2000, steps=50)
    assert torch.equal(found.mean[0][:, 1], x[:, 1])
    assert torch.equal(found.draws[0][7, :, 3:], x[:, 3:])
    deviation = covariance.diagonal().sqrt()
    error = (found.draws[0].mean(0)[:, HIDDEN] - mean) / (deviation / math.sqrt(draws))
    assert error.abs().max() < 12  # the draws of a chain, and those that are drawn again, depend on each other
    assert ((found.mean[0][:, HIDDEN] - mean).abs() < 0.6 * deviation).all()
    centered = found.draws[0][:, :, HIDDEN] - found.draws[0][:, :, HIDDEN].mean(0)
    pooled = torch.einsum("mnd,mne->de", centered, centered) / centered[..., 0].numel()
    assert torch.allclose(pooled, covariance, atol=(0.5 if by == "nuts" else 0.2) * covariance.diagonal().max())
    assert (found.deviation[0][:, [1, 3, 4]] == 0).all()


CENTRES = torch.tensor([[0.0, 0.0, 0.0], [3.0, 1.0, -1.0], [-2.0, 2.0, 2.0]])
SHARES = torch.tensor([0.5, 0.3, 0.2])


def clusters(x):
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(SHARES))
        pyro.sample("x", dist.Normal(CENTRES[k], 1.5).to_event(1), obs=x)


def nearest(x):
    with pyro.plate("data", len(x)):
        pyro.sample("k", dist.Categorical(logits=-0.1 * (x[:, None] - CENTRES).square().sum(-1)))


def some_missing():
    x = torch.tensor([[1.0, 0.5, -1.0], [-1.0, 1.0, 3.0], [0.0, 0.0, 0.5]])
    x[0, 0] = x[1, 1] = x[1, 2] = torch.nan
    return x


@pytest.mark.parametrize("by", ["importance", "gibbs"])
def test_codes_without_a_gradient_have_their_posterior_by_sums(by):
    """Means of the three clusters by their posterior probabilities; 1,000 imputations, within 5 standard errors."""
    x = some_missing()
    seen = dist.Normal(CENTRES, 1.5).log_prob(x.nan_to_num()[:, None]).where(~x.isnan()[:, None], 0.0)
    p = (SHARES.log() + seen.sum(-1)).softmax(-1)
    spread = (p @ CENTRES.square() - (p @ CENTRES).square()).sqrt()
    found = impute(clusters, nearest, x, by=by, draws=1000, samples=5000, steps=20).mean[0]
    assert ((found - p @ CENTRES).abs()[x.isnan()] < 5 * spread[x.isnan()] / math.sqrt(1000) + 0.03).all()


def test_codes_without_a_gradient_are_refused_where_one_is_needed():
    with pytest.raises(ValueError, match=r"Categorical at site 'k' has not: .* impute\(by='gibbs'\)"):
        impute(clusters, nearest, some_missing(), by="nuts")


def test_a_guide_whose_draws_hide_missing_entries_gets_the_means():
    """Gamma variates of missing parameters are finite: counts of rate z, of which the second is missing."""
    x = torch.tensor([[3.0, torch.nan], [1.0, 2.0]])

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Gamma(2.0, 2.0))
            pyro.sample("x", dist.Poisson(z[..., None] * torch.ones(2)).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Gamma(2 + x.sum(-1), 4.0))

    found = impute(model, guide, x, draws=1000, samples=5000).mean[0]
    assert abs(found[0, 1].item() - 5 / 3) < 0.15  # the mean of Gamma(2 + 3, 2 + 1)


def test_the_encoder_alone_is_fast_and_wrong_and_importance_is_right():
    """The encoder gets the mean for what is missing: its imputations are off, by what the weights correct."""
    vae, x, mean, _, _ = incomplete(factor=3.0)
    errors = {}
    for by in ("encoder", "importance"):
        found = impute(vae.model, vae.guide, x, by=by, draws=100, samples=2000)
        errors[by] = (found.mean[0][:, HIDDEN] - mean).square().mean().item()
    assert errors["importance"] < 0.3 * errors["encoder"]


def test_the_likelihood_of_observed_and_of_held_out_entries_is_exact():
    vae, x, mean, covariance, of_seen = incomplete(factor=3.0)
    seen = log_likelihood(*on_observed(vae.model, vae.guide, x), x, samples=3000, per_datum=True)
    assert ((seen.estimate - of_seen.log_prob(x[:, [1, 3, 4]])).abs() < 5 * seen.standard_error + 0.01).all()
    more = x.clone()
    more[:, HIDDEN] = mean  # held-out entries
    both = log_likelihood(vae.model, vae.guide, more, samples=3000, per_datum=True)
    exact = MultivariateNormal(mean, covariance).log_prob(mean)
    errors = (both.standard_error.square() + seen.standard_error.square()).sqrt()
    assert ((both.estimate - seen.estimate - exact).abs() < 5 * errors + 0.02).all()


def test_binary_pixels_and_encoders_that_take_nan():
    x = data.threshold(data.load("digits").test[:30])
    x[:, :, 4:] = torch.nan
    for network in ({}, {"network": FillMissing}):
        vae = VAE(priors.Normal(2), encoders.Normal((1, 8, 8), 2, **network), decoders.Bernoulli(2, (1, 8, 8)))
        found = impute(vae.model, vae.guide, x, draws=5, samples=20)
        assert set(found.draws[0].unique().tolist()) == {0.0, 1.0}
        assert ((found.mean[0] >= 0) & (found.mean[0] <= 1)).all()
        assert torch.equal(found.mean[0][:, :, :4], x[:, :, :4])
        assert math.isfinite(log_likelihood(*on_observed(vae.model, vae.guide, x), x, samples=5))


def test_parts_of_a_tuple_are_completed_beside_labels():
    def model(x, y):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(y.double(), 1.0))
            pyro.sample("x", dist.Normal(z[..., None].expand(*z.shape, 2), 0.1).to_event(1), obs=x)

    def guide(x, y):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x.sum(-1) + y) / 3, 1.0))

    x, y = torch.tensor([[2.0, torch.nan], [-1.0, torch.nan], [torch.nan, 1.0]]).double(), torch.tensor([0, 1, 1])
    found = impute(model, guide, (x, y), draws=50)
    mean = torch.tensor([2.0, -1.0, 1.0]) - 0.01 / 1.01 * (torch.tensor([2.0, -1.0, 1.0]) - y)
    assert torch.allclose(found.mean[0].double()[[0, 1, 2], [1, 1, 0]], mean.double(), atol=0.15)
    assert torch.equal(found.mean[1], y)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"by": "em"}, "by is one of importance, encoder, gibbs, nuts, not 'em'"),
        (
            {"memory": 1000},
            "a memory of 1,000 bytes is too small for 1000 samples of a datum: give more, or take fewer samples",
        ),
        ({"memory": "1 apple"}, "memory must be a number of bytes, or one with a unit, .*"),
        ({"draws": 1}, "draws must be at least 2, not 1"),
        ({"draws": 30, "samples": 20}, "samples must be at least 30, not 20"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    vae, x, *_ = incomplete(count=3)
    with pytest.raises(ValueError, match=f"^{message}$"):
        impute(vae.model, vae.guide, x, **settings)


def test_entries_that_depend_on_each_other_and_parts_without_any_are_refused():
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.MultivariateNormal(torch.zeros(2), torch.eye(2)), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))

    with pytest.raises(ValueError, match=r"^entries of site 'x' cannot be missing, .* MultivariateNormal depend.*\)$"):
        impute(model, guide, torch.tensor([[0.0, torch.nan], [1.0, 2.0]]))
    with pytest.raises(ValueError, match=r"^a part of the data has no observed entry: leave it out, or give some$"):
        impute(model, guide, torch.full((2, 2), torch.nan))


def test_weights_with_a_heavy_tail_are_said():
    """The exact posterior of complete data is too narrow, and in a wrong place, where entries are missing."""
    vae, x, *_ = incomplete()
    with pytest.warns(RuntimeWarning, match=r"of \d+ of 60 data have a Pareto k over 0\.7, .* take by='gibbs'"):
        impute(vae.model, vae.guide, x)


def narrow_above_zero(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.0, torch.where(x[:, 1] > 0, 0.05, 1.0)))


def of_one_code(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        pyro.sample("x", dist.Normal(z[..., None].expand(*z.shape, 2), 1.0).to_event(1), obs=x)


@pytest.mark.filterwarnings("ignore:the importance weights")
@pytest.mark.parametrize("by", ["encoder", "importance", "gibbs"])
def test_completions_keep_to_a_memory_limit(by):
    """So many data as fit are completed at a time, beside the result: 400 draws of 100 data of 5 numbers, and means."""
    vae, x, *_ = incomplete(count=100, factor=3.0)
    run, result = partial(impute, vae.model, vae.guide, x, by=by, draws=400, samples=2000, steps=1), 4 * 5 * 100 * 401
    peaks = [peak_of(lambda memory=memory: run(memory=memory)) for memory in ("2GB", "8MB")]
    assert peaks[1] < 8_000_000 + 3 * result < peaks[0]  # a peak counts twice, and results are joined and averaged
    assert torch.equal(run(memory="2GB").draws[0], run(memory="3GB").draws[0])  # the trials take no noise


@pytest.mark.parametrize("datum", [0, 1])
def test_heavy_weights_count_where_an_entry_is_missing(datum, recwarn):
    """The guide of each datum but the first is 14 times too narrow, and only one datum has an entry to be drawn."""
    x = torch.tensor([[0.0, -1.0], *[[1.0, 1.0]] * 19])
    x[datum, 0] = torch.nan
    impute(of_one_code, narrow_above_zero, x, samples=5000)
    said = [str(each.message) for each in recwarn if "Pareto" in str(each.message)]
    assert len(said) == datum
    assert all("weights of 1 of 20 data" in text for text in said)


def test_a_model_that_uses_incomplete_data_otherwise_is_refused():
    """What stands in the place of NaN would be scored, or be a covariate."""
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    x[2, 1] = torch.nan

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))

    def scaled(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z[..., None].expand(*z.shape, 3), 1.0).to_event(1), obs=2 * x)

    def autoregressive(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            loc = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], -1) + z[..., None]
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    for model in (scaled, autoregressive):
        with pytest.raises(ValueError, match=r"^the model must observe incomplete data as they are \(obs=x\), and use"):
            on_observed(model, guide, x)


def test_parts_that_are_equal_by_chance_are_imputed_each_by_its_own_site():
    """Each is 0 in the datum where the other one is missing: a is near z, and b near z + 5."""

    def model(a, b):
        with pyro.plate("data", len(a)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(a)), 1.0))
            pyro.sample("a", dist.Normal(z, 0.1), obs=a)
            pyro.sample("b", dist.Normal(z + 5, 0.1), obs=b)

    def guide(a, _):
        with pyro.plate("data", len(a)):
            pyro.sample("z", dist.Normal(a.nan_to_num(), torch.where(a.isnan(), 1.0, 0.1)))

    a, b = torch.tensor([0.0, torch.nan]), torch.tensor([torch.nan, 0.0])
    found = impute(model, guide, (a, b), by="nuts", draws=5, steps=50)
    assert found.mean[1][0].item() == pytest.approx(5.0, abs=0.3)
    assert found.mean[0][1].item() == pytest.approx(-5.0, abs=0.5)


def test_a_guide_that_fills_in_missing_entries_gets_them_beside_a_complete_covariate():
    """The exact posterior: x - 5 - y has mean z, of variance 0.09, in each observed entry; 500 draws."""
    y = torch.linspace(-2, 2, 30)
    x = (torch.linspace(-1, 1, 30) + 5 + y)[:, None] + torch.tensor([0.1, -0.2])
    x[:10, 0] = torch.nan

    def posterior(x, y):
        known = ~x.isnan()
        precision = 1 + known.sum(-1) / 0.09
        return (x - 5 - y[:, None]).nansum(-1) / 0.09 / precision, precision**-0.5

    def model(x, y):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal((z + 5 + y)[..., None].expand(*z.shape, 2), 0.3).to_event(1), obs=x)

    def guide(x, y):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(*posterior(x, y)))

    found = impute(model, guide, (x, y), by="encoder", draws=500).mean[0][:10, 0]
    assert torch.allclose(found, (posterior(x, y)[0] + 5 + y)[:10], atol=5 * 0.29 / 500**0.5)


def test_an_entry_that_a_later_datum_misses_is_no_covariate_either():
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    x[:15, 0] = x[35, 2] = torch.nan

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            loc = torch.stack([z, z + 3 * x[:, 2], torch.zeros_like(z)], -1)
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))

    with pytest.raises(ValueError, match=r"^the model must observe incomplete data as they are \(obs=x\), and use"):
        on_observed(model, guide, x)


@pytest.mark.parametrize("network", [FillMissing, MLP])
def test_data_of_another_precision_are_imputed_in_that_of_the_programs(network):
    torch.manual_seed(0)
    vae = VAE(priors.Normal(2), encoders.Normal(3, 2, network), decoders.Normal(2, 3))
    x = some_missing()
    single = impute(vae.model, vae.guide, x, by="encoder").mean[0]
    for same in (x.double(), x.double().numpy()):
        assert torch.equal(impute(vae.model, vae.guide, same, by="encoder").mean[0], single)
    assert math.isfinite(log_likelihood(*on_observed(vae.model, vae.guide, x.double()), x.double(), samples=5))


@pytest.mark.parametrize("by", ["importance", "encoder", "gibbs", "nuts"])
def test_data_are_imputed_in_a_plate_of_all_of_them(by):
    """As many at a time as fit into the plate, whose scale weighs nothing; 20 imputations of each datum."""
    vae, x, mean, covariance, _ = incomplete(count=2, factor=3.0)

    def under(part):
        def program(x):
            with pyro.plate("data", 30, subsample_size=len(x)):
                part(x)

        return program

    model = under(lambda x: pyro.sample("x", vae.decoder(pyro.sample("z", vae.prior())), obs=x))
    guide = under(lambda x: pyro.sample("z", vae.encoder(x)))
    found = impute(model, guide, x, by=by, samples=2000, steps=30).mean[0][:, HIDDEN]
    assert by == "encoder" or ((found - mean).abs() < 0.8 * covariance.diagonal().sqrt()).all()
    with pytest.raises(ValueError, match=r"^the plate over the data has size 30, .* take at most 30 draws, or"):
        impute(model, guide, x, by=by, draws=31)


@pytest.mark.parametrize("entry", [1, 0])
@pytest.mark.parametrize("by", ["importance", "encoder", "gibbs", "nuts"])
def test_a_datum_that_no_code_explains_is_named(by, entry):
    """The first datum misses entry 0, and gets the mean of the others there, which may be far off."""
    vae, *_ = incomplete(count=5)
    x = torch.zeros(5, 5).double()
    x[0, 0], x[3, entry] = torch.nan, -1e200
    which = 3 if entry else 0
    with pytest.raises(ValueError, match=rf"gives datum {which} a finite density; the data hold values up to 1e\+200"):
        impute(vae.model, vae.guide, x, by=by, draws=3, samples=10, steps=2)


def several_kinds(x, label, count):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        pyro.sample("x", dist.Normal(z[..., None].expand(*z.shape, 2), 0.3).to_event(1), obs=x)
        pyro.sample("label", dist.Bernoulli(logits=4 * z), obs=label)
        pyro.sample("count", dist.Poisson((z / 2).exp()), obs=count)


def of_the_pair(x, *_, **__):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.9 * x.mean(-1), 0.5))


@pytest.mark.parametrize("named", [False, True])
def test_parts_on_different_supports_are_imputed_together(named):
    """Each misses another datum's entries; the means by sums over a grid of codes."""
    x, label, count = torch.tensor([[torch.nan, -1.2], [0.4, 0.5]]), torch.tensor([torch.nan, 1.0]), torch.ones(2)
    count[1] = torch.nan
    batch = {"count": count, "label": label, "x": x} if named else (x, label, count)
    found = impute(several_kinds, of_the_pair, batch, draws=1000, samples=5000).mean
    of_x, of_label, of_count = found[::-1] if named else found
    z = torch.linspace(-5, 5, 20_001).double()
    prior = dist.Normal(0.0, 1.0).log_prob(z)
    first = (prior + dist.Normal(z, 0.3).log_prob(x[0, 1]) + dist.Poisson((z / 2).exp()).log_prob(count[0])).softmax(0)
    second = (
        prior + dist.Normal(z[:, None], 0.3).log_prob(x[1]).sum(-1) + dist.Bernoulli(logits=4 * z).log_prob(label[1])
    )
    assert of_x[0, 0].item() == pytest.approx((first * z).sum().item(), abs=0.05)
    assert of_label[0].item() == pytest.approx((first * (4 * z).sigmoid()).sum().item(), abs=0.01)
    assert of_count[1].item() == pytest.approx((second.softmax(0) * (z / 2).exp()).sum().item(), abs=0.03)


def test_parts_that_are_filled_alike_by_chance_are_imputed_each_by_its_own_site():
    """The missing label of the last data, which are imputed together, is filled with 0, and then equals the count."""
    x, label, count = torch.zeros(103, 2), torch.zeros(103), torch.zeros(103)
    label[-3:] = torch.tensor([torch.nan, 1.0, 0.0])
    count[-3:] = torch.tensor([0.0, 1.0, 0.0])
    x[-3:] = torch.tensor([[2.0, 2.0], [2.0, 2.0], [0.0, 0.0]])
    count[0] = torch.nan
    found = impute(several_kinds, of_the_pair, (x, label, count), draws=200).mean
    assert found[1][-3].item() == pytest.approx(1.0, abs=0.02)
    assert torch.equal(found[2][1:], count[1:])


@pytest.mark.parametrize(
    "in_batches",
    [
        lambda x: DataLoader(x, batch_size=4),
        lambda x: TensorDataset(x),
        lambda x: DataLoader(TensorDataset(x), batch_size=4, collate_fn=torch.utils.data.default_collate),
        lambda x: ChainDataset([_Streamed(x)]),
    ],
)
def test_data_in_batches_are_completed_as_data_in_one_tensor(in_batches):
    exact = probabilistic_pca(latent=2, observed=3, count=10)
    x = exact.x.clone()
    x[::2, 0] = x[1, 2] = torch.nan
    model, guide = exact.vae.model, exact.vae.guide
    expected, found = (impute(model, guide, data, by="gibbs", steps=3) for data in (x, in_batches(x)))
    assert torch.equal(expected.draws[0], found.draws[0])
    likelihoods = [log_likelihood(*on_observed(model, guide, data), data) for data in (x, in_batches(x))]
    assert likelihoods[0] == pytest.approx(likelihoods[1], abs=0.05)


class _Streamed(IterableDataset):
    def __init__(self, x):
        self.x = x

    def __iter__(self):
        yield from self.x

    def __len__(self):
        return len(self.x)


def test_a_loader_that_shuffles_is_not_completed():
    exact = probabilistic_pca(latent=2, observed=2, count=8)
    with pytest.raises(ValueError, match=r"^the completed data follow the order of the data, which this DataLoader"):
        impute(exact.vae.model, exact.vae.guide, DataLoader(exact.x, batch_size=4, shuffle=True))
