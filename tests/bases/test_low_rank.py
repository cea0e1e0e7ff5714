"""W as the product of two thin matrices, against the product itself and the truncated SVD."""

import pytest
import torch

from noble_fx.bases.low_rank import LowRank, spectral_factors


@pytest.mark.parametrize(("in_features", "out_features", "rank"), [(12, 20, 3), (20, 12, 12), (7, 7, 1)])
def test_it_computes_its_merged_weight(in_features, out_features, rank):
    torch.manual_seed(0)
    base = LowRank(in_features, out_features, rank).double()
    base.fill(torch.randn(out_features, in_features, dtype=torch.float64))
    x, b = torch.randn(5, 2, in_features, dtype=torch.float64), torch.randn(out_features, dtype=torch.float64)
    expected = torch.nn.functional.linear(x, base.merged(), b)
    torch.testing.assert_close(base(x, b), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(base(x), expected - b, rtol=1e-12, atol=1e-12)


def test_filled_it_is_the_best_approximation_of_its_rank():
    weight = torch.randn(20, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    base = LowRank(12, 20, 4).double()
    base.fill(weight)
    tail = torch.linalg.svdvals(weight)[4:]
    torch.testing.assert_close((weight - base.merged()).norm(), tail.norm(), rtol=1e-12, atol=1e-12)


def test_both_factors_have_the_same_spectrum():
    up, down = spectral_factors(torch.randn(20, 12, generator=torch.Generator().manual_seed(2)), 5)
    torch.testing.assert_close(up.t() @ up, down @ down.t(), rtol=1e-5, atol=1e-5)


def test_at_full_rank_it_is_the_weight():
    weight = torch.randn(9, 14, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    base = LowRank(14, 9, 9).double()
    base.fill(weight)
    torch.testing.assert_close(base.merged(), weight, rtol=1e-12, atol=1e-12)


def test_made_of_factors_it_holds_copies_of_them():
    up, down = torch.randn(6, 2), torch.randn(2, 5)
    base = LowRank.of(up, down)
    assert (base.in_features, base.out_features, base.rank) == (5, 6, 2)
    up.zero_()
    assert base.up.abs().sum() > 0
