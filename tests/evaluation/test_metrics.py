"""Measures: against closed forms and known sets."""

import math
from itertools import pairwise
from statistics import NormalDist

import pytest
import torch

from minidalle.evaluation.metrics import (
    Rate,
    chance_band,
    evenness,
    fair_evenness,
    frechet_distance,
    precision_recall,
)


@pytest.mark.parametrize(("hits", "n"), [(1, 2), (3, 10), (0, 50), (50, 50), (499, 500), (1, 1)])
def test_intervals_are_wilsons(hits, n):
    z = NormalDist().inv_cdf(0.975)
    low, high = Rate(hits, n).interval
    for end in (low, high):  # the shares from which the one found lies just z standard errors away
        assert abs(hits / n - end) == pytest.approx(z * math.sqrt(end * (1 - end) / n), rel=1e-3, abs=1e-9)
    assert 0 <= low <= hits / n <= high <= 1 and high - low > 0


def test_an_interval_known_by_hand():
    assert Rate(5, 10).interval == pytest.approx((0.2366, 0.7634), abs=1e-4)


def test_no_trials_have_no_share_and_fit_into_json():
    assert math.isnan(Rate(0, 0).share) and all(map(math.isnan, Rate(0, 0).interval))
    assert Rate(0, 0).to_json() == {"share": None, "low": None, "high": None, "n": 0}
    assert Rate(1, 2).to_json() == {"share": 0.5, "low": 0.0945, "high": 0.9055, "n": 2}


def gaussian(mean: torch.Tensor, std: torch.Tensor, n: int = 400) -> torch.Tensor:
    """Make points with exactly this mean and this diagonal covariance."""
    x = torch.randn(n, len(mean), dtype=torch.float64)
    x = x - x.mean(0)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(x.T.cov()), x.T, upper=False).T
    return white * std + mean


def test_the_frechet_distance_of_gaussians_has_its_closed_form():
    mean_a, mean_b = torch.tensor([[0.0, 1.0, -2.0], [0.5, 1.0, 1.0]], dtype=torch.float64)
    std_a, std_b = torch.tensor([[1.0, 2.0, 0.5], [3.0, 2.0, 0.1]], dtype=torch.float64)
    a, b = gaussian(mean_a, std_a), gaussian(mean_b, std_b)
    expected = (mean_a - mean_b).square().sum() + (std_a - std_b).square().sum()
    assert frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-6)
    assert frechet_distance(b, a) == pytest.approx(expected.item(), rel=1e-6)
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q
    assert frechet_distance(a @ turn, b @ turn) == pytest.approx(expected.item(), rel=1e-6)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_precision_and_recall_of_known_sets():
    real = torch.randn(200, 8)
    assert precision_recall(real, real) == (1, 1)
    assert precision_recall(real, real + 100) == (0, 0)
    made = torch.cat([real[:100], real[:100] + 100])
    precision, recall = precision_recall(real, made)
    assert precision == 0.5 and recall >= 0.5
    assert precision_recall(torch.cat([real, real + 100]), real)[0] == 1  # all of it real, half of the real missing
    assert precision_recall(torch.cat([real, real + 100]), real)[1] == 0.5


def test_a_feature_covers_as_far_as_its_third_neighbour():
    real = torch.arange(6.0)[:, None]  # the third neighbour of 0 is 3
    for x, covered in ((-2.9, 1), (-3.1, 0)):
        assert precision_recall(real, torch.tensor([[x]]).repeat(4, 1))[0] == covered


def test_too_few_features_are_refused():
    with pytest.raises(ValueError, match=r"^There are 5 real and 3 made pictures; more than 3 of each"):
        precision_recall(torch.zeros(5, 2), torch.zeros(3, 2))


@pytest.mark.parametrize("n", [40, 500])
def test_the_chance_band_of_two_options_is_the_binomials(n):
    # The rarer of two has at most m of n when either has: twice the binomial's tail
    tail = [sum(math.comb(n, k) for k in range(m + 1)) / 2**n for m in range(n // 2)]
    rarest = next(m for m, p in enumerate(tail) if 2 * p >= 0.025)
    low, high = chance_band(n, 2)
    assert low * n / 2 == pytest.approx(rarest, abs=1)
    assert high == pytest.approx(2 - low, abs=4 / n)


def test_the_chance_band_narrows_as_draws_are_added():
    few, many = chance_band(64, 9), chance_band(6400, 9)
    assert few[0] < many[0] < 1 < many[1] < few[1]
    assert chance_band(500, 9) == chance_band(500, 9)
    assert all(map(math.isnan, chance_band(0, 9)))


@pytest.mark.parametrize(
    ("counts", "value"),
    [
        ([5, 5, 5, 5], 1), ([7, 0, 0], 0), ([1, 1, 0, 0], 0.5), ([2, 1, 1, 0], 0.75),
        ([30, 10], torch.distributions.Bernoulli(0.25).entropy().item() / math.log(2)),
    ],
)  # fmt: skip
def test_evenness_is_entropy_as_a_share_of_its_greatest(counts, value):
    assert evenness(counts) == pytest.approx(value, abs=1e-6)
    assert evenness(counts[::-1]) == pytest.approx(value, abs=1e-6)
    assert evenness([100 * count for count in counts]) == pytest.approx(value, abs=1e-6)


def test_evenness_without_draws_is_not_a_number():
    assert math.isnan(evenness([0, 0])) and all(map(math.isnan, fair_evenness(0, 54)))


@pytest.mark.parametrize("n", [2, 15, 101])
def test_the_evenness_of_fair_draws_between_two_is_the_binomials(n):
    values = [(evenness([k, n - k]), math.comb(n, k) / 2**n) for k in range(n + 1)]
    low, high = fair_evenness(n, 2)
    assert sum(p for value, p in values if value < low - 1e-9) <= 0.03
    assert sum(p for value, p in values if value <= low + 1e-9) >= 0.02
    assert high == pytest.approx(max(value for value, _ in values))


def test_fair_draws_are_more_even_the_more_there_are():
    bands = [fair_evenness(n, 54) for n in (20, 200, 2000)]
    assert all(few[1] < many[0] for few, many in pairwise(bands)) and bands[-1][1] < 1
    assert bands[0][1] <= math.log(20) / math.log(54)
