"""Principal components: equal to LAPACK's, whatever the matrix."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minidalle.pca import dims_for, principal_axes, svd


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 99))
@settings(max_examples=40)
def test_the_decomposition_is_lapacks(rows, columns, seed):
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    values, directions = svd(matrix)
    expected = torch.linalg.svdvals(matrix)
    torch.testing.assert_close(values[: len(expected)], expected)
    assert (values[len(expected) :] < 1e-9).all()
    torch.testing.assert_close(directions.T @ directions, torch.eye(columns, dtype=torch.float64))
    along = matrix @ directions
    torch.testing.assert_close(along.norm(dim=0), values)
    torch.testing.assert_close(along.T @ along, torch.diag(values.square()))


@pytest.mark.parametrize("matrix", [torch.zeros(5, 4), torch.ones(6, 3), torch.eye(5), torch.ones(4, 2).cumsum(1)])
def test_ranks_below_full_and_equal_values_are_no_trouble(matrix):
    values, directions = svd(matrix)
    torch.testing.assert_close(values[: min(matrix.shape)], torch.linalg.svdvals(matrix.double()))
    torch.testing.assert_close(directions.T @ directions, torch.eye(matrix.shape[1], dtype=torch.float64))


def test_axes_stand_in_the_order_of_their_variance_and_explain_the_points():
    spread = torch.tensor([0.5, 3.0, 1.0])
    points = torch.randn(4000, 3) * spread + torch.tensor([1.0, 2.0, 3.0])
    mean, axes, variances = principal_axes(points)
    assert axes.dtype == variances.dtype == torch.float32
    torch.testing.assert_close(mean, points.mean(0))
    torch.testing.assert_close(axes.abs(), torch.eye(3)[:, [1, 2, 0]], atol=0.05, rtol=0)
    torch.testing.assert_close(variances, ((points - mean) @ axes).var(0))


def test_axes_are_counted_by_the_share_of_variance_that_they_hold():
    variances = torch.tensor([6.0, 3.0, 1.0, 0.0])
    assert [dims_for(variances, share) for share in (0.5, 0.6, 0.61, 0.9, 0.95, 1.0)] == [1, 1, 2, 2, 3, 3]
