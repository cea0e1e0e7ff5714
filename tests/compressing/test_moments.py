"""Sums over rows: the same as of all rows at once, in float64."""

import pytest
import torch

from noble_fx.compressing.moments import Moments, wide
from tests.compressing.data import skewed


@pytest.mark.parametrize("width", [1, 3, 4, 7, 33])
def test_the_sum_over_pieces_is_the_sum_of_all(width):
    x = skewed(300, width)
    moments = Moments()
    for piece in x.split(70):
        moments.add(piece)
    assert moments.rows == 300
    torch.testing.assert_close(moments.sums, x.T @ x, rtol=1e-12, atol=1e-12)
    assert torch.equal(moments.sums, moments.sums.T)


def test_more_rows_than_are_widened_at_a_time():
    x = skewed(9000, 3)
    moments = Moments()
    moments.add(x)
    torch.testing.assert_close(moments.sums, x.T @ x, rtol=1e-12, atol=1e-12)


def test_partners():
    x, y = skewed(100, 3), skewed(100, 5, seed=4)
    moments = Moments()
    moments.add(x[:60], y[:60])
    moments.add(x[60:], y[60:])
    torch.testing.assert_close(moments.cross, y.T @ x)


def test_rows_of_float32_are_multiplied_in_float64():
    x = skewed(500, 6).float()
    moments = Moments()
    moments.add(x)
    torch.testing.assert_close(moments.sums, x.double().T @ x.double(), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_shows(bad):
    x = skewed(10, 3)
    moments = Moments()
    moments.add(x)
    assert moments.finite
    x[4, 1] = bad
    moments.add(x)
    assert not moments.finite


def test_wide_is_no_view_that_learns():
    parameter = torch.nn.Parameter(torch.ones(2))
    assert wide(parameter).dtype == torch.float64
    assert not wide(parameter).requires_grad
