"""Measures: a rate with its interval, distances between sets of features."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

DRAWS = 4000  # of a simulated experiment


@dataclass(frozen=True)
class Rate:
    """A share of n trials, with its 95 % interval (Wilson 1927)."""

    hits: int
    n: int

    @property
    def share(self) -> float:
        """Give hits / n, not a number when n is 0."""
        return self.hits / self.n if self.n else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Give the two ends of the 95 % interval."""
        if not self.n:
            return math.nan, math.nan
        z = 1.96
        middle = (self.share + z * z / (2 * self.n)) / (1 + z * z / self.n)
        half = z / (1 + z * z / self.n) * math.sqrt(self.share * (1 - self.share) / self.n + z * z / (4 * self.n**2))
        return max(0.0, middle - half), min(1.0, middle + half)

    def to_json(self) -> dict:
        """Give share, interval and n as plain numbers; JSON has no "not a number", so None when n is 0."""
        share, low, high = (round(v, 4) if self.n else None for v in (self.share, *self.interval))
        return {"share": share, "low": low, "high": high, "n": self.n}


def frechet_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Measure the distance between the Gaussians that fit two sets of features (N, D) and (M, D).

    Paper: Heusel et al. 2017, eq. 6. We differ: the features are those of features.py, not Inception's.
    """
    a, b = a.double(), b.double()
    root_a = matrix_sqrt(a.T.cov())
    cross = matrix_sqrt(root_a @ b.T.cov() @ root_a)
    return float((a.mean(0) - b.mean(0)).square().sum() + a.T.cov().trace() + b.T.cov().trace() - 2 * cross.trace())


def matrix_sqrt(matrix: torch.Tensor) -> torch.Tensor:
    """Take the square root of a symmetric matrix without negative eigenvalues."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


def precision_recall(real: torch.Tensor, made: torch.Tensor, k: int = 3) -> tuple[float, float]:
    """Measure how much of what was made lies among the real features, and how much of the real is reached.

    Args:
        real, made: features (N, D) and (M, D), more than k of each.
        k: which of a feature's neighbours tells how far it reaches.

    Raises: ValueError: when there are too few of them.
    Paper: Kynkäänniemi et al. 2019, eq. 1 and 2.
    """
    if min(len(real), len(made)) <= k:
        raise ValueError(f"There are {len(real)} real and {len(made)} made pictures; more than {k} of each are needed.")

    def covered(points: torch.Tensor, support: torch.Tensor) -> float:
        radii = torch.cdist(support, support).kthvalue(k + 1, dim=1).values  # the nearest is the point itself
        return float((torch.cdist(points, support) <= radii).any(1).float().mean())

    return covered(made, real), covered(real, made)


def chance_band(n: int, options: int) -> tuple[float, float]:
    """Tell how far apart the shares of equally likely options lie by chance alone.

    Args:
        n: of fair draws.
        options: among which each draw chooses.

    Returns: two multiples of the fair share; the rarest option falls below the first, and the commonest rises above the
        second, in 2.5 % of all experiments each. Simulated, from a fixed seed. Not numbers when n is 0.
    """
    if not n:
        return math.nan, math.nan
    multiples = np.random.default_rng(0).multinomial(n, [1 / options] * options, DRAWS) * options / n
    return float(np.quantile(multiples.min(1), 0.025)), float(np.quantile(multiples.max(1), 0.975))


def evenness(counts: Sequence[int]) -> float:
    """Measure how evenly draws spread over all options there are, 0 to 1: their entropy as a share of the greatest.

    Args:
        counts: how often each option was drawn, two options or more; those that never were are among them.

    Not a number without draws. Paper: Pielou 1966.
    """
    total = sum(counts)
    if not total:
        return math.nan
    return -sum(count / total * math.log(count / total) for count in counts if count) / math.log(len(counts))


def fair_evenness(n: int, options: int) -> tuple[float, float]:
    """Tell between which two values the evenness of n fair draws lies in 95 % of all experiments.

    Few draws cannot reach all options, so it is below 1. Simulated, from a fixed seed. Not numbers when n is 0.
    """
    if not n:
        return math.nan, math.nan
    draws = np.random.default_rng(0).multinomial(n, [1 / options] * options, DRAWS)
    found = [evenness(counts) for counts in draws.tolist()]
    return float(np.quantile(found, 0.025)), float(np.quantile(found, 0.975))
