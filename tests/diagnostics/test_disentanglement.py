import math

import numpy as np
import pytest
import torch
from sklearn.metrics import mutual_info_score

from pyro_vae import data
from pyro_vae.diagnostics.consistency import consistency
from pyro_vae.diagnostics.disentanglement import (
    BINS,
    _checked,
    _concentration,
    _factor_vae,
    _gap,
    _predicted_alone,
    disentanglement,
    mutual_information,
)
from pyro_vae.diagnostics.vectors import halves

FACTORS = data.sprites().factors
RARE = torch.eye(768)[:, halves(768, seed=0)[1][:2]]  # values of one datum each, in the second half


def normal(count, size, seed=0):
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def test_codes_that_are_the_factors_have_the_best_scores():
    """In another order, and in other units. By hand, SAP is the mean of 1 - 1/3, 1 - 1/4, and twice 1 - 1/8."""
    found = disentanglement(FACTORS[:, [2, 0, 3, 1]] * torch.tensor([1e-9, -1.0, 3.0, 1e9]).double() + 1, FACTORS)
    assert found.mig == pytest.approx(1.0, abs=1e-12)
    assert found.sap == pytest.approx((2 / 3 + 3 / 4 + 7 / 8 + 7 / 8) / 4, abs=1e-12)
    assert (found.disentanglement, found.completeness) == pytest.approx((1.0, 1.0), abs=1e-6)
    assert (found.informativeness, found.factor_vae) == (1.0, 1.0)
    assert found.information.max(1).values.tolist() == pytest.approx([math.log(n) for n in (8, 3, 8, 4)])
    assert found.importance.argmax(0).tolist() == [1, 3, 0, 2]


@pytest.mark.parametrize("seed", range(2))
def test_codes_that_do_not_depend_on_the_factors_have_scores_near_0(seed):
    """Accuracies are those of guesses, within 4 standard errors: 384 data of each factor, and 400 votes of each."""
    found = disentanglement(normal(768, 4, seed), FACTORS, seed=seed)
    assert max(found.mig, found.sap, found.disentanglement, found.completeness) < 0.03
    chances = [1 / 3, 1 / 4, 1 / 8, 1 / 8]
    error = math.sqrt(sum(p * (1 - p) for p in chances) / 384) / 4
    assert abs(found.informativeness - np.mean(chances)) < 4 * error
    assert abs(found.factor_vae - 1 / 4) < 4 * math.sqrt(3 / 16 / 1600) + 0.03


def test_a_turn_mixes_the_factors_and_keeps_what_is_linear():
    scaled = (FACTORS - FACTORS.double().mean(0)) / FACTORS.double().std(0)
    turned = scaled @ torch.linalg.qr(normal(4, 4))[0]
    mixed = disentanglement(turned, FACTORS)
    assert mixed.mig < 0.3  # that of the factors is 1
    assert mixed.sap < 0.3
    assert mixed.disentanglement < 0.5
    linear = [consistency(codes, FACTORS).mean_r_squared for codes in (scaled, turned)]
    assert linear == pytest.approx([1.0, 1.0], abs=1e-10)


def test_the_gap_is_worked_out_by_hand():
    """All 8 pairs of a factor u of 2 values and v of 4, equally often.

    The codes u and 4 u + v both know u, and nobody else does: a gap of 0. The second knows v, the first does not: 1.
    If the second is v // 2 in place of that, it knows log 2 of log 4 nats of v.
    """
    u, v = torch.cartesian_prod(torch.arange(2), torch.arange(4)).repeat(20, 1).T
    factors = torch.stack([u, v], 1)
    assert disentanglement(torch.stack([u, 4 * u + v], 1), factors).mig == pytest.approx((0 + 1) / 2)
    assert disentanglement(torch.stack([u, v // 2], 1), factors).mig == pytest.approx((1 + 1 / 2) / 2)
    table = torch.tensor([[0.1, 0.9], [0.5, 0.2], [0.3, 0.8]])
    assert _gap(table) == pytest.approx((0.2 + 0.1) / 2)


def test_the_mutual_information_is_that_of_the_counts():
    codes = normal(500, 2)
    factors = (codes[:, :1] > 0).long() + torch.arange(500)[:, None] % 3
    binned = [np.digitize(z, np.histogram(z, BINS)[1][:-1]) for z in codes.numpy().T]
    expected = [[mutual_info_score(z, factors[:, 0])] for z in binned]
    torch.testing.assert_close(mutual_information(codes, factors), torch.tensor(expected).double())
    constant = mutual_information(torch.full((500, 1), 0.1).double(), factors)
    assert abs(constant.item()) < 1e-12


def test_thresholds_tell_the_values_that_they_can():
    """5 values of which the code joins two: 3 of them are right, and one of the two: 4/5.

    Rare values count alike: where 10 of 90 data of one value meet all 9 of another, it is best to say the other.
    """
    v = torch.arange(5).repeat_interleave(torch.tensor([10, 200, 50, 50, 40]))
    code = v.clamp(max=3).double()[:, None]
    assert _predicted_alone(code, v[:, None]).item() == pytest.approx(4 / 5)
    assert _predicted_alone(torch.zeros(350, 1).double(), v[:, None]).item() == pytest.approx(1 / 5)
    code, v = (torch.tensor(each).repeat_interleave(torch.tensor([80, 10, 9])) for each in ([0, 1, 1], [0, 0, 1]))
    assert _predicted_alone(code.double()[:, None], v[:, None]).item() == pytest.approx((80 / 90 + 1) / 2)


def test_concentration_is_1_minus_the_entropy_of_the_shares():
    """Rows (1, 0) and (1, 1), with weights 1/3 and 2/3: 1/3 of 1 and 2/3 of 0. A row of zeros has no weight."""
    table = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]], dtype=torch.double)
    assert _concentration(table) == pytest.approx(1 / 3)
    quarter = torch.tensor([[1.0, 3.0]], dtype=torch.double)
    assert _concentration(quarter) == pytest.approx(1 + (0.25 * math.log2(0.25) + 0.75 * math.log2(0.75)))


def test_the_votes_for_a_factor_that_no_code_holds_are_shared():
    """One code is x, the other one noise like it. If y is fixed, each varies least half the time: (1 + 1/2) / 2."""
    noise = FACTORS[torch.randperm(768, generator=torch.Generator().manual_seed(1)), 2]
    codes = torch.stack([FACTORS[:, 2], noise], 1) + 0.01 * normal(768, 2)
    found = [_factor_vae(codes, FACTORS[:, 2:], seed) for seed in range(20)]
    assert np.mean(found) == pytest.approx(0.75, abs=4 * 0.5 / math.sqrt(20 * 400))
    dead = torch.cat([torch.full((768, 1), 0.1).double(), codes], -1)
    assert _factor_vae(dead, FACTORS[:, 2:], 0) == found[0]


@pytest.mark.parametrize(
    ("codes", "factors", "message"),
    [
        (FACTORS[:9], FACTORS[:9], "at least 100 data are needed, not 9: give more"),
        (FACTORS, FACTORS[:700], "the codes and the factors must be of the same data in the same order, not of 768"),
        (FACTORS[:, :1], FACTORS, "the scores compare dimensions of the codes, at least 2 of them, not 1: give more"),
        (FACTORS, FACTORS[:, :1], "the scores compare factors, at least 2 of them, not 1: give more"),
        (FACTORS * 0, FACTORS, "all data have the same code: train longer, or with a smaller KL weight"),
        (FACTORS, FACTORS + 0.5, "the factors must be classes, as whole numbers, not measurements: sort them"),
        (FACTORS, FACTORS * torch.tensor([1, 0, 1, 1]), "factor 1 has 1 values in 768 data: leave it out"),
        (FACTORS, RARE, "factor 0 has almost always the same value: leave it out, or give more data"),
        (FACTORS, FACTORS + 8 * torch.arange(768)[:, None], "factor 0 has 768 values in 768 data: sort them into"),
    ],
)
def test_what_cannot_be_scored_is_refused(codes, factors, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        disentanglement(codes, factors)


def test_factors_may_be_any_whole_numbers():
    for factors in (FACTORS.double() * 5 - 100, FACTORS.numpy(), FACTORS.to(torch.int8)):
        assert torch.equal(_checked(normal(768, 2), factors)[1], FACTORS)
