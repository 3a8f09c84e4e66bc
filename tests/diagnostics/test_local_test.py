"""A local test: posteriors that are wrong for some data alone, and exact ones."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.utils.data import DataLoader

from pyro_vae.diagnostics.calibration import calibration
from pyro_vae.diagnostics.local_test import local_test


def model(x):
    """The posterior is N(x / 2, 1 / 2)."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).to_event(1), obs=x)


def guide_of(factor):
    """A posterior whose deviation is wrong by a factor where x is above 1."""

    def guide(x):
        with pyro.plate("data", len(x)):
            wrong = torch.where(x[:, 0] > 1, factor, 1.0)
            pyro.sample("z", dist.Normal(x[:, 0] / 2, 0.5**0.5 * wrong))

    return guide


X, AT = torch.zeros(800, 1), torch.tensor([[-1.5], [-0.5], [1.5], [2.0]])


@pytest.mark.parametrize("factor", [0.3, 1.0, 3.0])
def test_posteriors_that_are_wrong_for_some_data_are_found_there(factor):
    """800 simulated data, of which a quarter are above 1; 19 permutations, so that p is at least 0.05."""
    p = local_test(model, guide_of(factor), X, AT, permutations=19).p
    if factor == 1:
        assert (p > 0.05).all()
    else:
        assert (p[2:] == 0.05).all()
        assert (p[:2] > 0.05).all()


@pytest.mark.slow
def test_p_values_of_exact_posteriors_are_uniform():
    """20 sets of simulated data, 9 permutations: p is one of 0.1, ..., 1, each with a tenth; the mean is 0.55."""
    found = [local_test(model, guide_of(1.0), X[:100], AT[:1], permutations=9, seed=seed).p for seed in range(20)]
    p = torch.cat(found)
    assert abs(p.mean() - 0.55) < 4 * (0.0825 / 20) ** 0.5
    assert p.unique().numel() > 3


@pytest.mark.parametrize("draws", [2, 5])
def test_a_few_draws_do_not_make_exact_posteriors_wrong(draws):
    """Ten p-values of 0.1, ..., 1 have a mean of 0.55; draws that were measured by themselves gave 0.1 each."""
    found = [
        local_test(model, guide_of(1.0), X[:200], AT[:1], draws=draws, permutations=9, seed=seed).p
        for seed in range(10)
    ]
    assert torch.cat(found).mean() > 0.55 - 4 * (0.0825 / 10) ** 0.5 + 0.1


def test_codes_of_several_sites_and_data_of_several_parts():
    def of_two(x, y):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            b = pyro.sample("b", dist.Normal(y[:, 0], 1.0))
            pyro.sample("x", dist.Normal(a.sum(-1, keepdim=True) + b.unsqueeze(-1), 1.0).to_event(1), obs=x)

    def guide(x, y):
        with pyro.plate("data", len(x)):
            pyro.sample("a", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            pyro.sample("b", dist.Normal(y[:, 0] + x[:, 0] / 4 - y[:, 0] / 4, 0.75**0.5))

    x = torch.zeros(400, 1), torch.arange(400.0)[:, None] % 3
    found = local_test(of_two, guide, x, (torch.tensor([[4.0]]), torch.ones(1, 1)), permutations=19)
    assert found.statistic.shape == (1,)
    assert found.p[0] == 0.05  # a does not depend on x, as it should


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"draws": 1}, "draws must be at least 2, not 1"),
        ({"permutations": 0}, "permutations must be at least 1, not 0"),
        ({"data": X[:19]}, "a local test needs at least 20 data to simulate as many, not 19: give more"),
        ({"at": torch.zeros(1, 2)}, "shape"),
        ({"at": DataLoader(AT, shuffle=True)}, "the tests of data"),
    ],
)
def test_what_cannot_be_tested_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        local_test(model, guide_of(1.0), **{"data": X[:50], "at": AT} | arguments)


def test_calibration_of_all_data_together_sees_the_same_posteriors_as_wrong_too():
    assert "no failure" not in calibration(model, guide_of(0.3), X).verdict
    assert calibration(model, guide_of(1.0), X).verdict == "no failure is seen"
