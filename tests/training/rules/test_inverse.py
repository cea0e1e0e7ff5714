"""Inverses of small symmetric matrices, also of singular ones."""

import pytest
import torch

from noble_fx import ConfigError
from noble_fx.training.rules.inverse import check_damping, inverses, spectra, wide


def gram(rank, seed=0, dtype=torch.float64):
    rows = torch.randn(rank, 20, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return rows @ rows.T


@pytest.mark.parametrize("ranks", [[1], [3, 5, 3], [4, 4, 4]])
def test_each_is_its_own_whatever_stands_beside_it(ranks):
    grams = [gram(rank, at) for at, rank in enumerate(ranks)]
    for one, inverse in zip(grams, inverses(grams, 0.25), strict=True):
        wanted = torch.linalg.inv(one + 0.25 * torch.eye(len(one)))
        torch.testing.assert_close(inverse, wanted, rtol=1e-10, atol=1e-12)


def test_zero_has_one_and_rounding_below_zero_does_no_harm():
    torch.testing.assert_close(inverses([torch.zeros(3, 3)], 0.5)[0], 2 * torch.eye(3))
    thin = torch.full((4, 4), 1.0)
    (values, _), *_ = spectra([thin])
    assert values.min() >= 0


def test_narrow_dtypes_are_widened():
    assert wide(torch.ones(2, dtype=torch.bfloat16)).dtype == torch.float32
    assert wide(torch.ones(2, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("damping", [0, -1, float("nan"), float("inf"), True, "1"])
def test_a_damping_that_is_none(damping):
    with pytest.raises(ConfigError, match="must be a number above 0"):
        check_damping(damping)
