"""Measures: a rate with its interval, distances between sets of features."""

import math
from dataclasses import dataclass

import torch


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

    Paper: Heusel et al. 2017, eq. 6, on CLIP's z_image in the place of Inception features.
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

    Paper: Kynkäänniemi et al. 2019, eq. 1 and 2.
    """

    def covered(points: torch.Tensor, support: torch.Tensor) -> float:
        radii = torch.cdist(support, support).kthvalue(k + 1, dim=1).values  # the nearest is the point itself
        return float((torch.cdist(points, support) <= radii).any(1).float().mean())

    return covered(made, real), covered(real, made)
