import itertools
import math

import mpmath
import numpy as np
import pytest
import torch

from pyro_vae.diagnostics.weights import (
    effective_sample_size,
    jackknifed,
    pareto_k,
    standard_error,
    summary,
    warn_of_tails,
)


def by_subsets(log_weights, order):
    """Return the jackknife by its definition: the means over all subsets, in 50 digits."""
    mpmath.mp.dps = 50
    count, weights = len(log_weights), [mpmath.e ** mpmath.mpf(float(value)) for value in log_weights]
    total = mpmath.mpf(0)
    for j in range(order + 1):
        estimates = [mpmath.log(sum(kept) / (count - j)) for kept in itertools.combinations(weights, count - j)]
        factor = (-1) ** j * mpmath.mpf(count - j) ** order / (math.factorial(order - j) * math.factorial(j))
        total += factor * sum(estimates) / len(estimates)
    return float(total)


@pytest.mark.parametrize("scale", [3.0, 0.0, 0.3, 30.0, 300.0])  # up to weights of which one is all of the sum
@pytest.mark.parametrize("order", [2, 1, 0])
@pytest.mark.parametrize("count", [12, 3, 9, 30])
def test_the_jackknife_is_that_of_all_subsets(scale, order, count):
    log_weights = np.random.default_rng(count).standard_normal(count) * scale - 500
    found = jackknifed(torch.tensor(log_weights)[:, None], order)
    assert found.item() == pytest.approx(by_subsets(log_weights, order), rel=1e-12)


def test_each_order_of_the_jackknife_removes_a_term_of_the_bias():
    """Log-normal weights of mean 1: the bias of log-mean falls as 1/K, 1/K^2, 1/K^3; 100,000 draws of 8 and 16."""
    biases = []
    for count in (8, 16):
        generator = torch.Generator().manual_seed(count)
        log_weights = 0.5 * torch.randn(count, 100_000, generator=generator, dtype=torch.double) - 0.125
        of_orders = [jackknifed(log_weights, order) for order in (0, 1, 2)]
        errors = [found.std().item() / math.sqrt(100_000) for found in of_orders]
        biases.append([(found.mean().item(), error) for found, error in zip(of_orders, errors, strict=True)])
    for order, ((at_8, error_8), (at_16, error_16)) in enumerate(zip(*biases, strict=True)):
        assert abs(at_16 - at_8 / 2 ** (order + 1)) < 4 * (error_16 + error_8) + 0.1 * abs(at_16)
    plain, first, second = (abs(bias) for bias, _ in biases[0])
    assert plain > 10 * first > 10 * second


@pytest.mark.parametrize("order", [0, 1])
def test_the_standard_error_is_that_of_the_estimate(order):
    """4,000 repetitions of 500 log-normal weights: the variance of the error in units of its standard error is 1."""
    log_weights = torch.randn(500, 4000, generator=torch.Generator().manual_seed(0), dtype=torch.double) - 0.5
    z = jackknifed(log_weights, order) / standard_error(log_weights)
    assert 0.9 < z.var().item() < 1.2


def test_equal_weights_have_no_error_and_the_lightest_tail():
    found = summary(torch.full((100, 2), -3.0, dtype=torch.double), 2)
    assert found.estimate.tolist() == pytest.approx([-3.0, -3.0], abs=1e-9)
    assert found.standard_error.tolist() == pytest.approx([0, 0], abs=1e-12)
    assert found.effective_sample_size.tolist() == pytest.approx([100, 100])
    assert found.pareto_k.tolist() == [-math.inf, -math.inf]


def test_the_effective_sample_size_of_weights_0_and_1_is_their_number():
    log_weights = torch.tensor([0.0, -math.inf, 0.0, 0.0, -math.inf]).double()[:, None]
    assert effective_sample_size(log_weights).item() == pytest.approx(3)


@pytest.mark.parametrize("k", [0.5, 0.2, 0.9])
def test_pareto_k_is_the_shape_of_the_tail(k):
    """20 times 20,000 weights of a Pareto distribution whose moments of order 1/k and above are infinite."""
    uniform = torch.rand(20_000, 20, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    found = pareto_k(-k * uniform.log())
    assert abs(found.mean().item() - k) < 4 * found.std().item() / math.sqrt(20) + 0.02


@pytest.mark.parametrize("spread", [100.0, 1000.0, 1e5])
def test_a_tail_that_underflows_beside_its_largest_weight_is_the_heaviest(spread):
    """Log-weights of an untrained VAE spread by thousands of nats: k is the mean excess, of the order of the spread."""
    log_weights = spread * torch.randn(5000, 5, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    assert (pareto_k(log_weights) > 10).all()
    assert (pareto_k(log_weights - 1e6) > 10).all()


def test_a_tail_of_which_too_few_weights_differ_is_unknown():
    """As of discrete codes, or of a likelihood that is 0 at most draws."""
    tied, zero = torch.zeros(2, 4000, dtype=torch.double)
    tied[0] = 40.0
    zero[:] = -math.inf
    zero[:10] = torch.arange(10.0)
    assert pareto_k(torch.stack([tied, zero], 1)).isnan().all()


def test_a_heavy_tail_is_said():
    with pytest.warns(RuntimeWarning, match=r"weights of 1 of 3 data have a Pareto k over 0\.7: .* too low"):
        warn_of_tails(torch.tensor([0.71, 0.7, math.nan]))


@pytest.mark.parametrize("count", [1, 24])
def test_of_few_weights_the_tail_is_unknown(count):
    found = summary(torch.zeros(count, 3, dtype=torch.double))
    assert found.pareto_k.isnan().all()
    assert found.standard_error.isnan().all() == (count == 1)
