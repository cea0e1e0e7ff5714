"""What free terms leave: the residual of a least-squares fit, row by row."""

import pytest
import torch

from noble_fx.compressing.residual import residual
from tests.compressing.data import skewed


def rows(count: int, width: int, free: int) -> tuple[torch.Tensor, torch.Tensor]:
    z, t = skewed(count, width), skewed(count, free, seed=2) if free else torch.zeros(count, 0, dtype=torch.float64)
    return z + (t @ torch.ones(free, width, dtype=torch.float64)), torch.cos(3 * t)


def summed(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    v = torch.cat([z, t, torch.ones(len(z), 1, dtype=torch.float64)], 1)
    return v.T @ v


@pytest.mark.parametrize("free", [0, 1, 5])
@pytest.mark.parametrize("centred", [True, False])
def test_it_is_what_least_squares_leaves(free, centred):
    z, t = rows(400, 6, free)
    found = residual(summed(z, t), free, centred)
    terms = torch.cat([t, torch.ones(400, 1, dtype=torch.float64)], 1) if centred else t
    left = z - terms @ torch.linalg.lstsq(terms, z).solution if terms.shape[1] else z
    torch.testing.assert_close(found.rest, left.T @ left)
    if free:
        slope = torch.linalg.lstsq(terms, z).solution[:free].T
        torch.testing.assert_close(found.fit.slope, slope)
    assert found.width == 6


def test_features_that_repeat_each_other_are_no_trouble():
    z, t = rows(400, 4, 3)
    twice = torch.cat([t, t, torch.zeros(400, 1, dtype=torch.float64)], 1)
    once, both = residual(summed(z, t), 3, True), residual(summed(z, twice), 7, True)
    torch.testing.assert_close(both.rest, once.rest)
    assert both.fit.slope.isfinite().all()


def test_few_rows_are_fitted_with_a_ridge():
    z, t = rows(12, 2, 8)
    found = residual(summed(z, t), 8, True)
    z, t = z - z.mean(0), t - t.mean(0)
    exact = torch.linalg.lstsq(t, z).solution.T
    assert found.fit.slope.norm() < exact.norm()
    residue = z - t @ torch.linalg.lstsq(t, z).solution
    assert found.rest.trace() > residue.square().sum()  # with the ridge's own price
    assert torch.linalg.eigvalsh(found.rest).min() > -1e-12
