import math

import numpy as np
import pytest
import torch
from scipy import linalg, stats

from pyro_vae import data
from pyro_vae.diagnostics import distances
from pyro_vae.diagnostics.distances import _width, discrepancy, frechet, precision_and_recall, random_features
from pyro_vae.diagnostics.quality import _of_real, sample_quality


def normal(count, size, seed=0):
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_discrepancy_is_the_mean_over_pairs_of_different_data():
    """With the kernel that the features give, pair by pair; 30 and 40 data of 3 dimensions."""
    x, y = normal(30, 3), 2 * normal(40, 3, 1)
    same = generator()
    waves = random_features(torch.cat([x, y]), _width(torch.cat([x, y]), same), same)
    kernel = waves @ waves.T
    within = [
        (part.sum() - part.trace()) / (len(part) * (len(part) - 1)) for part in (kernel[:30, :30], kernel[30:, 30:])
    ]
    expected = sum(within) - 2 * kernel[:30, 30:].mean()
    assert discrepancy(x, y, generator())[0] == pytest.approx(expected.item(), rel=1e-9)


def test_products_of_the_features_are_the_normal_kernel():
    """Within 5 standard errors of 256 frequencies; a datum with itself gives 1."""
    x = normal(20, 3)
    waves = random_features(x, 1.5, generator())
    expected = (-torch.cdist(x, x).square() / (2 * 1.5**2)).exp()
    torch.testing.assert_close(waves @ waves.T, expected, rtol=0, atol=5 * math.sqrt(1 / 2 / 256))
    torch.testing.assert_close((waves @ waves.T).diagonal(), torch.ones(20).double())


@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_the_discrepancy_of_two_normals_has_no_bias(shift, monkeypatch):
    """200 pairs of samples, of N(0, I) and N(m, I): (s^2 / (s^2 + 2))^(D/2) 2 (1 - exp(-|m|^2 / 2 (s^2 + 2)))."""
    monkeypatch.setattr(distances, "_width", lambda *_: 2.0)
    monkeypatch.setattr(distances, "PERMUTATIONS", 0)
    found = [discrepancy(normal(40, 2, 2 * k), normal(60, 2, 2 * k + 1) + shift, generator(k))[0] for k in range(200)]
    expected = 4 / 6 * 2 * (1 - math.exp(-2 * shift**2 / (2 * 6)))
    assert abs(np.mean(found) - expected) < 4 * np.std(found) / math.sqrt(200)


def test_the_p_value_of_equal_distributions_is_uniform():
    """100 pairs of samples, by Kolmogorov and Smirnov at 0.001; a difference gives the smallest p-value."""
    found = [discrepancy(normal(30, 2, 2 * k), normal(50, 2, 2 * k + 1), generator(k))[1] for k in range(100)]
    assert stats.kstest(found, "uniform").pvalue > 0.001
    assert discrepancy(normal(200, 2), normal(200, 2, 1) + 2, generator())[1] == pytest.approx(1 / 501)


def test_equal_values_have_no_discrepancy():
    assert discrepancy(torch.ones(20, 2).double(), torch.ones(30, 2).double(), generator()) == pytest.approx((0, 1))


def test_precision_and_recall_by_hand():
    """Real data 0, 1, 3, 7 have the radii 1, 1, 2, 4 to their nearest neighbour; the draws 8, 20, 21 have 12, 1, 1.

    Of the draws, 8 alone is near a real datum (7). Of the real data, all but none are within 12 of 8: 0, 1, 3 and 7.
    """
    real, drawn = (torch.tensor(values).double()[:, None] for values in ([0, 1, 3, 7], [8, 20, 21]))
    assert precision_and_recall(real, drawn, neighbours=1) == (1 / 3, 1.0)
    assert precision_and_recall(drawn, real, neighbours=1) == (1.0, 1 / 3)


@pytest.mark.parametrize("on_grid", [False, True])
def test_precision_is_that_of_its_definition(on_grid, monkeypatch):
    """One ball after the other; on a grid, many distances are equal to a radius."""
    monkeypatch.setattr(distances, "AT_A_TIME", 7)
    real, drawn = normal(40, 3), 1.2 * normal(30, 3, 1)
    real, drawn = (each.round() / 3 if on_grid else each for each in (real, drawn))
    squares = [
        [int(((x - c) * 3).round().square().sum()) if on_grid else ((x - c) ** 2).sum() for c in real] for x in drawn
    ]
    own = [[int(((x - c) * 3).round().square().sum()) if on_grid else ((x - c) ** 2).sum() for c in real] for x in real]
    radii = [sorted(row)[3] for row in own]
    expected = np.mean([any(a <= r for a, r in zip(row, radii, strict=True)) for row in squares])
    assert precision_and_recall(real, drawn)[0] == pytest.approx(expected)


def test_draws_of_one_of_two_clusters_are_precise_and_recall_half():
    real = torch.cat([normal(500, 2), normal(500, 2, 1) + 100])
    assert precision_and_recall(real, real) == (1.0, 1.0)
    assert precision_and_recall(real, real + 1e4) == (0.0, 0.0)
    precision, recall = precision_and_recall(real, normal(500, 2, 2))
    assert precision > 0.95
    assert recall == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("far", [1e4, 1e8])
def test_an_outlier_among_others_does_not_make_draws_precise(far):
    """It is in one ball at most, and has one of its own, which holds all or none."""
    real, drawn = normal(500, 5), normal(400, 5, 1) @ normal(5, 5, 2)
    clean = precision_and_recall(real[1:], drawn)
    real[0] = far
    balls = torch.cdist(real, real).topk(4, largest=False).values[:, -1]
    expected = (torch.cdist(drawn, real) <= balls).any(1).double().mean().item()
    assert precision_and_recall(real, drawn) == pytest.approx((expected, clean[1] * 499 / 500), abs=1e-6)


def test_the_frechet_distance_of_normals_is_that_of_scipys_root():
    """Of the samples' moments; a dimension may be constant, as of a unit that is never active."""
    x, y = normal(50, 4) @ normal(4, 4, 1), normal(70, 4, 2) @ normal(4, 4, 3) + 1
    first, second = np.cov(x.numpy().T), np.cov(y.numpy().T)
    apart = (x.mean(0) - y.mean(0)).square().sum().item()
    expected = apart + np.trace(first + second - 2 * linalg.sqrtm(first @ second).real)
    assert frechet(x, y) == pytest.approx(expected, rel=1e-9)
    assert 0 <= frechet(x, x) < 1e-6
    dead = torch.cat([x, torch.zeros(50, 1).double()], -1), torch.cat([y, torch.full((70, 1), 3.0).double()], -1)
    assert frechet(*dead) == pytest.approx(expected + 9, rel=1e-6)


@pytest.mark.parametrize(("size", "n", "m"), [(3, 200, 300), (8, 100, 100)])
def test_the_frechet_distance_of_few_data_has_the_bias_that_is_stated(size, n, m):
    """400 pairs of samples of N(0, I): (1/n + 1/m) D (D + 5) / 4, to 10 percent, as this is the first order in 1/n."""
    found = [frechet(normal(n, size, 2 * k), normal(m, size, 2 * k + 1)) for k in range(400)]
    assert np.mean(found) == pytest.approx((1 / n + 1 / m) * size * (size + 5) / 4, rel=0.1)


def test_what_real_data_would_give_is_the_bias_of_normals():
    """50 samples of 400 data of N(0, I) in 8 dimensions, for 200 draws, as stated above, to 10 percent."""
    found = [_of_real(normal(400, 8, k), 200, generator(k)) for k in range(50)]
    assert np.mean(found) == pytest.approx((1 / 400 + 1 / 200) * 8 * 13 / 4, rel=0.1)


def test_data_and_other_data_are_alike_and_noise_is_not():
    digits = data.load("digits")
    labels = digits.train_labels
    alike = sample_quality(digits.train, digits.test, labels=labels)
    noise = sample_quality(digits.train, torch.rand(360, 1, 8, 8, generator=generator()), labels=labels)
    assert alike.mmd_p > 0.01
    assert noise.mmd_p < 0.01
    assert alike.frechet < 2 * alike.frechet_of_real < noise.frechet
    assert alike.precision > 0.7
    assert alike.recall > 0.7
    assert noise.precision < 0.2
    assert alike.accuracy == noise.accuracy > 0.9
    assert alike == sample_quality(digits.train, digits.test, labels=labels)


def test_a_class_that_is_never_drawn_lowers_the_recall_alone():
    digits = data.load("digits")
    few = digits.test[digits.test_labels < 5]
    found = sample_quality(digits.train, few, labels=digits.train_labels)
    assert found.precision > 0.7
    assert found.recall < 0.7
    assert found.frechet > 5 * found.frechet_of_real


def test_without_labels_the_data_are_compared_as_they_are():
    x, y = normal(100, 3), normal(80, 3, 1)
    found = sample_quality(x, y)
    assert (found.precision, found.recall) == precision_and_recall(x, y)
    assert math.isnan(found.frechet)
    assert math.isnan(found.accuracy)
    assert sample_quality(x.reshape(100, 3, 1).numpy(), y.reshape(80, 3, 1).numpy())[:4] == found[:4]


X, SAME = torch.arange(200.0).reshape(50, 4), torch.ones(50, 4)


@pytest.mark.parametrize(
    ("real", "drawn", "labels", "message"),
    [
        (X, X[:, :3], None, r"real data and draws must have one shape, not \(4,\) and \(3,\)"),
        (X, X.reshape(50, 2, 2), None, r"real data and draws must have one shape, not \(4,\) and \(2, 2\)"),
        (X, X[:5], None, "at least 20 real data and draws are needed, not 50 and 5: give more"),
        (
            X,
            X / 0 - X / 0,
            None,
            "the draws must be finite, and below 1e100, but those of datum 0 are not: leave it out",
        ),
        (X, X, [1, 2], r"labels must be one number for each of 50 data, not of shape \(2,\)"),
        (
            X,
            X,
            [1] * 50,
            "a classifier needs at least 40 real data that differ, and several data of each of several classes: leave",
        ),
        (X, X, range(50), "a classifier needs at least 40 real data that differ, and several data of each"),
        (X[:30], X, [1, 2] * 15, "a classifier needs at least 40 real data that differ, and several data of each"),
        (SAME, X, [1, 2] * 25, "a classifier needs at least 40 real data that differ, and several data of each"),
    ],
)
def test_samples_that_cannot_be_compared_are_refused(real, drawn, labels, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        sample_quality(real, drawn, labels=labels)


@pytest.mark.parametrize(
    "unit",
    [
        lambda x: x * 1e-13,
        lambda x: x * 1e-60,
        lambda x: x + 1e4 * torch.arange(64),
    ],
)
def test_the_frechet_distance_does_not_depend_on_the_unit_and_the_origin_of_the_data(unit):
    """It was 0.006 for spreads of 1e-13, and 0.000 around other means, as the classifier had learned nothing."""
    digits = data.load("digits")
    x, labels = digits.test.double().flatten(1), digits.test_labels
    drawn = x + 0.1 * normal(len(x), 64)
    expected, found = (sample_quality(*map(each, (x, drawn)), labels=labels) for each in (lambda x: x, unit))
    assert expected.accuracy > 0.8
    torch.testing.assert_close(found[2:], expected[2:], rtol=1e-3, atol=0.01)


@pytest.mark.parametrize("apart", [1e9, 1e4])
def test_precision_and_recall_of_clusters_that_are_far_apart(apart):
    """Draws 5 deviations beside both clusters: 0.5 and 0.49 were found for 0, as squares of 1e18 are rounded by 1e4."""
    real, drawn = (torch.cat([normal(200, 2, seed), normal(190, 2, seed + 1) + apart]) for seed in (0, 2))
    assert precision_and_recall(real, drawn + 9) == (0.0, 0.0)
    found, expected = precision_and_recall(real, drawn), precision_and_recall(real[:200], drawn[:200])
    other = precision_and_recall(real[200:] - apart, drawn[200:] - apart)
    for both, one, two in zip(found, expected, other, strict=True):
        assert both == pytest.approx((200 * one + 190 * two) / 390)
