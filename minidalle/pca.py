"""Principal components, by our own singular value decomposition: what directions points vary along, and how much."""

import torch

MAX_SWEEPS = 40  # over all pairs of columns; a dozen suffices for a hundred columns
ORTHOGONAL = 1e-10  # cosine of two columns below which they need no rotation


def svd(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Decompose a matrix into orthogonal directions and the length it has along each.

    Pairs of columns are rotated until they stand at right angles (one-sided Jacobi); what all rotations together are
    holds the directions, and how long the columns have become are the singular values. A round of a tournament holds
    D / 2 pairs that share no column, so each round is one step.

    Args:
        matrix: (N, D), finite.

    Returns: the singular values (D,), the largest first, and the right singular vectors (D, D), one a column; float64.
    Paper: Hestenes 1958; the tournament is that of Brent and Luk 1985.
    """
    size = matrix.shape[1]
    columns = torch.cat([matrix.double(), matrix.new_zeros(len(matrix), size % 2).double()], dim=1)  # an even number
    turned = torch.eye(columns.shape[1], dtype=torch.float64, device=matrix.device)
    order = torch.arange(columns.shape[1], device=matrix.device)
    for _ in range(MAX_SWEEPS):
        steepest = 0.0
        for _ in range(columns.shape[1] - 1):
            first, second = order[: len(order) // 2], order[len(order) // 2 :].flip(0)
            steepest = max(steepest, rotate(columns, turned, first, second))
            order = torch.cat([order[:1], order[1:].roll(1)])
        if steepest < ORTHOGONAL:
            break
    lengths, largest = columns.norm(dim=0).sort(descending=True)
    return lengths[:size], turned[:size, largest[:size]]


def rotate(columns: torch.Tensor, turned: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> float:
    """Turn pairs of columns in place, so that the two of each pair are orthogonal; give the largest cosine before."""
    a, b = columns[:, first], columns[:, second]
    dot, lead = (a * b).sum(0), a.square().sum(0) - b.square().sum(0)
    angle = 0.5 * torch.atan2(torch.where(lead < 0, -2 * dot, 2 * dot), lead.abs())  # at most an eighth of a turn
    cos, sin = angle.cos(), angle.sin()
    for target in (columns, turned):
        x, y = target[:, first], target[:, second]
        target[:, first], target[:, second] = cos * x + sin * y, cos * y - sin * x
    scale = (a.square().sum(0) * b.square().sum(0)).sqrt()
    return float((dot.abs() / scale.clamp(min=1e-300)).max())


def principal_axes(points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Find the directions along which points vary, the one with the largest variance first.

    Args:
        points: (N, D), two or more.

    Returns: the mean (D,), the axes (D, D), one a column, and the variance along each (D,); in the points' own type.
    """
    mean = points.mean(0)
    lengths, axes = svd(points - mean)
    return mean, axes.to(points), (lengths.square() / (len(points) - 1)).to(points)


def dims_for(variances: torch.Tensor, share: float) -> int:
    """Count the axes that hold a share of the variance: variances (D,), the largest first."""
    held = variances.cumsum(0) / variances.sum()
    return int((held < share - 1e-9).sum()) + 1
