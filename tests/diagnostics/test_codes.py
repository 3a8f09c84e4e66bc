import math
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from pyro_vae import VAE, ais, data, decoders, encoders, predictive_check, priors
from pyro_vae.diagnostics.codes import codes
from pyro_vae.diagnostics.encoding import code_means
from pyro_vae.diagnostics.estimators import linear_gaussian
from pyro_vae.diagnostics.vectors import as_classes
from tests.support.linear import in_a_plate, probabilistic_pca


def test_variances_and_mutual_information_of_the_exact_posterior_are_those_in_closed_form():
    """2,000 data: the means have the variance 1 - S_dd, and I(x; z) = -log|S| / 2 for a posterior covariance S."""
    exact = probabilistic_pca(latent=2, observed=3, count=2000)
    found = codes(exact.vae.model, exact.vae.guide, exact.x)
    expected = 1 - exact.covariance.diagonal()
    assert ((found.variances - expected).abs() < 5 * expected * math.sqrt(2 / 2000)).all()
    assert found.mutual_information == pytest.approx(-exact.covariance.logdet().item() / 2, abs=0.1)
    assert found.mmd_p > 0.01  # the codes of all data have the prior's distribution
    assert found.classifier_p > 0.01
    assert found.active == 2


def test_a_plate_of_more_data_than_the_batch_changes_no_information():
    """By hand, the VAE of the closed form above under a plate of 10,000 data, which Pyro scales up."""
    exact = probabilistic_pca(latent=2, observed=3, count=1000)

    found = codes(*in_a_plate(exact.vae, 10_000), exact.x).mutual_information
    assert found == pytest.approx(-exact.covariance.logdet().item() / 2, abs=0.1)


@pytest.mark.parametrize(("offset", "factor"), [(0.3, 1.0), (0.0, 0.3), (0.0, 2.0)])
def test_codes_that_are_not_distributed_like_the_prior_are_seen(offset, factor):
    exact = probabilistic_pca(latent=2, observed=3, count=1000, scale=2.0, offset=offset, factor=factor)
    found = codes(exact.vae.model, exact.vae.guide, exact.x)
    assert found.mmd_p < 0.01
    assert found.classifier_p < 0.01


def test_a_collapsed_posterior_is_named_with_what_to_try():
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1).expand([len(x)]))

    vae = VAE(priors.Normal(2), encoders.Normal(5, 2), decoders.Normal(2, 5))
    found = codes(vae.model, guide, torch.randn(200, 5))
    assert found.active == 0
    assert abs(found.mutual_information) < 1e-4
    assert found.verdict.startswith("the posterior has collapsed: no dimension of the codes depends on the data; try")
    assert found.mmd_p > 0.01


KINDS = {
    "texts": (["a", "b"], 1.0),
    "bytes": ([b"a", b"b"], 1.0),
    "texts of pandas": (np.array(["a", "b"], dtype=object), 1.0),
    "bfloat16": (torch.tensor([3, 5]).bfloat16().requires_grad_(), 1.0),
    "negative": (torch.tensor([-1.0, 2.0]), 1.0),
    "missing": (["a", None], "the label of datum 1 is None: leave out such data, or the labels"),
    "NaN": ([0.0, math.nan], "the label of datum 1 is nan: leave out such data, or the labels"),
    "measurements": (np.array([1, 2.5], dtype=object), "labels must be classes, such as whole numbers or texts, not"),
}


@pytest.mark.parametrize(("kind", "found"), KINDS.values(), ids=KINDS)
def test_labels_of_every_kind_are_classes_or_refused(kind, found):
    labels = [kind[number % 2] for number in range(60)]
    labels = torch.stack(labels) if isinstance(kind, torch.Tensor) else np.array(labels, getattr(kind, "dtype", None))
    if isinstance(found, str):
        with pytest.raises(ValueError, match=found):
            as_classes(labels, 60)
    else:
        assert as_classes(labels, 60).tolist() == [0, 1] * 30


def test_a_class_for_each_datum_has_no_accuracy():
    """No class of the data that are measured has been learned, so that an accuracy of 0 would be that of any codes."""
    vae, x = linear_gaussian(count=40)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = codes(vae.model, vae.guide, x, labels=range(40))
    assert math.isnan(found.neighbour_accuracy)
    assert math.isnan(found.linear_accuracy)


def test_labels_are_predicted_from_codes_that_hold_them():
    """Codes that are the coordinates of two classes, far apart, or noise."""
    labels = torch.arange(200) % 2
    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0)) + 10 * labels[:, None]
    vae = VAE(priors.Normal(2), encoders.Normal(2, 2), decoders.Normal(2, 2))

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 0.1).to_event(1))

    found = codes(vae.model, guide, x, labels=labels)
    assert (found.neighbour_accuracy, found.linear_accuracy) == (1.0, 1.0)
    order = labels.argsort()
    in_order = codes(vae.model, guide, x[order], labels=labels[order])
    assert (in_order.neighbour_accuracy, in_order.linear_accuracy) == (1.0, 1.0)
    by_chance = codes(vae.model, guide, x, labels=torch.randint(0, 2, (200,)))
    assert abs(by_chance.linear_accuracy - 0.5) < 4 * 0.5 / math.sqrt(100)
    assert math.isnan(codes(vae.model, guide, x).linear_accuracy)
    with pytest.raises(ValueError, match=r"^labels must be one number for each of 200 data, not of shape \(3,\)$"):
        codes(vae.model, guide, x, labels=[1, 2, 3])
    with pytest.raises(ValueError, match=r"^labels must be one number for each of 200 data, not of shape \(300,\)$"):
        codes(vae.model, guide, x, labels=torch.arange(300) % 2)  # as those of other data
    with pytest.raises(ValueError, match=r"^labels must be classes, such as whole numbers or texts, not measurements"):
        codes(vae.model, guide, x, labels=torch.linspace(0, 1, 200))
    assert math.isnan(codes(vae.model, guide, x, labels=torch.zeros(200)).linear_accuracy)


@pytest.mark.parametrize("size", [8, 60, 1, 1900])
def test_the_size_of_the_batches_does_not_matter(size, monkeypatch):
    """The mutual information of n data is at most log n: it would be 2.08 nats of a first batch of 8."""
    monkeypatch.setattr("pyro_vae.diagnostics.codes.MOST", 200)
    exact = probabilistic_pca(latent=2, observed=3, count=205)
    pair, loader = (exact.vae.model, exact.vae.guide), DataLoader(TensorDataset(exact.x), batch_size=size)
    expected, found = codes(*pair, exact.x), codes(*pair, loader)
    assert found.mutual_information == pytest.approx(expected.mutual_information, abs=0.05)
    assert expected.mutual_information > 2.1
    torch.testing.assert_close(found.variances, expected.variances, rtol=0, atol=0.05)


def test_batches_that_cannot_be_joined_are_refused():
    def model(x, _=None):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.expand(-1, x.shape[1]), 1.0).to_event(1), obs=x)

    def guide(x, _=None):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, :1], 1.0).to_event(1))

    batches = DataLoader(Ragged(), batch_size=None)
    with pytest.raises(ValueError, match=r"^codes compares data with each other: give batches of one structure"):
        codes(model, guide, batches)


class Ragged:
    """Batches of 12 data of 2 and of 3 numbers."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return torch.ones([[12, 2], [12, 3]][index])


def test_labels_follow_the_order_of_the_data():
    """Codes that hold their label: a loader that shuffles would give the accuracy of guesses."""
    labels = torch.arange(200) % 2
    x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0)) + 10 * labels[:, None]
    vae, rows = VAE(priors.Normal(2), encoders.Normal(2, 2), decoders.Normal(2, 2)), TensorDataset(x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 0.1).to_event(1))

    for ordered in (DataLoader(rows, batch_size=50), DataLoader(rows, batch_size=200), rows):
        assert codes(vae.model, guide, ordered, labels=labels).linear_accuracy == 1.0
    mixed = torch.randperm(200).split(50)
    for shuffled in (DataLoader(rows, 50, shuffle=True), DataLoader(rows, batch_sampler=[m.tolist() for m in mixed])):
        assert math.isnan(codes(vae.model, guide, shuffled).linear_accuracy)
        with pytest.raises(
            ValueError, match=r"^the labels follow the order of the data, which this DataLoader changes"
        ):
            codes(vae.model, guide, shuffled, labels=labels)
        with pytest.raises(ValueError, match=r"^the codes follow the order of the data, which this DataLoader changes"):
            code_means(vae.model, guide, shuffled)


def test_vaes_on_digits_and_few_data():
    digits = data.load("digits")
    vae = VAE(priors.Normal(2), encoders.Normal((1, 8, 8), 2), decoders.Bernoulli(2, (1, 8, 8), grey=True))
    assert codes(vae.model, vae.guide, digits.test).variances.shape == (2,)
    with pytest.raises(ValueError, match=r"^codes compares data with each other, at least 20 of them, not 3"):
        codes(vae.model, vae.guide, digits.test[:3])


def of_plate(size):
    """Programs for 400 data in all, or for those that they are given."""

    def plate(x):
        return pyro.plate("data", size or len(x), subsample_size=len(x))

    def model(x):
        with plate(x):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).to_event(1), obs=x)

    def guide(x):
        with plate(x):
            pyro.sample("z", dist.Normal(0.4 * x[:, 0], 0.8))

    return model, guide


def test_a_plate_that_takes_a_part_of_its_data_counts_each_datum_once():
    """log p(x) is that of N(0, 2); the mutual information is that of the same programs without a size."""
    x = 1.4 * torch.randn(40, 1, generator=torch.Generator().manual_seed(0))
    exact = dist.Normal(0.0, 2**0.5).log_prob(x[:, 0]).mean()
    assert abs(ais(*of_plate(400), x, steps=40).estimate.mean() - exact) < 0.02
    whole, part = (codes(*of_plate(size), x).mutual_information for size in (None, 400))
    q = dist.Normal(0.4 * x[:, 0], 0.8)
    z = torch.linspace(-8, 8, 4001)[:, None]
    density = q.log_prob(z).exp()
    information = (density * (q.log_prob(z) - density.mean(1, keepdim=True).log())).sum(0).mean() * 16 / 4000
    assert abs(whole - information) < 0.3
    assert abs(part - information) < 0.3


def test_codes_of_different_sizes_are_refused():
    """Series of one and of two steps have a code for each step."""

    def model(x):
        with pyro.plate("data", len(x)):
            for step in range(x.shape[1]):
                pyro.sample(f"z{step}", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(torch.zeros(x.shape[1]), 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            for step in range(x.shape[1]):
                pyro.sample(f"z{step}", dist.Normal(x[:, step], 1.0))

    series = DataLoader([torch.zeros(3, 1), torch.zeros(4, 2)], batch_size=None)
    with pytest.raises(ValueError, match="some data have 1 numbers as their code, others 2: give those of one size at"):
        code_means(model, guide, series)
    with pytest.raises(ValueError, match="the statistic is that of all data: give batches of one structure and shape"):
        predictive_check(model, guide, series, lambda x: x.mean())


def test_means_of_whole_numbers():
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Categorical(torch.tensor([0.2, 0.3, 0.5])))
            pyro.sample("x", dist.Normal(torch.zeros(1), 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Categorical(torch.tensor([0.1, 0.2, 0.7]).expand(len(x), 3)))

    found = code_means(model, guide, torch.zeros(20, 1), draws=500).mean()
    assert abs(found - 1.6) < 4 * (0.44 / 10_000) ** 0.5


def test_a_guide_that_draws_noise_beside_its_sites_is_refused():
    """The mutual information was 0.64 instead of 1.76 nats, as draws had the densities of other posteriors."""
    exact = probabilistic_pca(latent=2, observed=3, count=40)

    def noisy(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", exact.vae.encoder(x + 0.5 * torch.randn_like(x)))

    with pytest.raises(ValueError, match=r"^codes needs the density .* the guide gives another one each time.*code_m"):
        codes(exact.vae.model, noisy, exact.x)


@pytest.mark.parametrize(("center", "scale"), [(30.0, 1.0), (1e6, 1.0), (0.0, 1e-6), (0.0, 1e-14)])
def test_units_and_center_of_the_codes_change_no_measure(center, scale):
    """The classifier was right in 46 % of all cases instead of 70 % around 30; the linear map in 48 % around 1e6."""
    x = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = (x.sum(1) > 0).long() + 2 * (x[:, 0] > x[:, 1]).long()

    def found(center, scale):
        def model(x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(x.new_full((2,), center), scale).to_event(1))
                pyro.sample("x", dist.Normal((z - center) / scale, 0.5).to_event(1), obs=x)

        def guide(x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(center + scale * (1.6 * x + 0.3), 0.3 * scale).to_event(1))

        return codes(model, guide, x, labels=labels)

    one, other = found(0.0, 1.0), found(center, scale)
    assert one.classifier_accuracy > 0.65
    assert one.linear_accuracy > 0.95
    for name in ("mutual_information", "mmd", "classifier_accuracy", "neighbour_accuracy", "linear_accuracy"):
        assert getattr(other, name) == pytest.approx(getattr(one, name), abs=0.02)


@pytest.mark.parametrize("unit", [1e-14, 1e-3, 1e3])
def test_active_dimensions_are_counted_in_units_of_the_prior(unit):
    """A latent of this scale, and another that the data do not depend on; the posterior's means have variance 1/2.

    "The posterior has collapsed" was said of a prior of scale 0.001, though I(x; z) = log(2)/2.
    """
    x = math.sqrt(2) * torch.randn(1000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.double)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), unit).to_event(1))
            pyro.sample("x", dist.Normal(z[..., :1] / unit, 1.0).to_event(1), obs=x)

    def guide(x):
        mean, scale = torch.cat([x / 2, 0 * x], -1), torch.tensor([math.sqrt(0.5), 1.0])
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(unit * mean, unit * scale).to_event(1))

    found = codes(model, guide, x)
    assert found.active == 1
    assert found.variances[0].item() == pytest.approx(0.5, abs=5 * math.sqrt(2 / 1000))
    assert found.mutual_information == pytest.approx(math.log(2) / 2, abs=0.05)
    assert found.verdict == "1 of 2 dimensions of the codes are active"


def test_codes_that_differ_little_but_tell_the_data_have_not_collapsed():
    """N(0.01 x, 0.001^2) beside a standard normal prior: I(x; z) is log(101)/2."""
    x = torch.randn(1000, 1, generator=torch.Generator().manual_seed(0))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(100 * z, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.01 * x, 0.001).to_event(1))

    found = codes(model, guide, x)
    assert found.active == 0
    assert found.mutual_information == pytest.approx(math.log(101) / 2, abs=0.1)
    assert found.verdict.startswith("no dimension of the codes is active, but together they know 2.")
