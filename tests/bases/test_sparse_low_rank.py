"""A product of two thin matrices and numbers at fixed places: what is drawn, filled, and kept for the backward."""

import pytest
import torch

from noble_fx.bases.low_rank import spectral_factors
from noble_fx.bases.sparse_low_rank import SparseLowRank
from noble_fx.errors import ConfigError


def made(seed=0, **settings):
    torch.manual_seed(seed)
    base = SparseLowRank(12, 20, 3, **{"density": 0.2} | settings).double()
    base.draw()
    return base


def test_its_places_are_of_w_each_once_and_fixed_by_the_seed():
    base = made()
    assert base.index.dtype is torch.int32
    assert base.index.unique().numel() == base.index.numel() == int(0.2 * 12 * 20)
    assert int(base.index.max()) < 240
    assert torch.equal(base.index, base.index.sort().values)
    assert torch.equal(base.index, made().index)
    assert not torch.equal(base.index, made(seed=1).index)


def test_filled_it_is_the_svd_and_what_that_leaves_at_its_places():
    base, weight = made(), torch.randn(20, 12, dtype=torch.float64)
    base.fill(weight)
    up, down = spectral_factors(weight, 3)
    rest = (weight - up @ down).flatten()
    torch.testing.assert_close((base.merged() - weight).flatten()[base.index.long()], torch.zeros(48).double())
    rest[base.index.long()] = 0
    torch.testing.assert_close((weight - base.merged()).flatten(), rest, rtol=1e-12, atol=1e-12)


def test_the_gradient_of_its_values_is_the_dense_one_at_its_places():
    base, x = made(), torch.randn(7, 12, dtype=torch.float64)
    base.fill(torch.randn(20, 12, dtype=torch.float64))
    dy = torch.randn(7, 20, dtype=torch.float64)
    base(x).backward(dy)
    torch.testing.assert_close(base.values.grad, (dy.t() @ x).flatten()[base.index.long()])
    torch.testing.assert_close(base.up.grad, 32 / 3 * (dy.t() @ x) @ base.down.t())


def test_its_backward_keeps_the_parts_and_not_w():
    base, kept = made(), []
    base.fill(torch.randn(20, 12, dtype=torch.float64))
    x = torch.randn(1, 12, dtype=torch.float64)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.shape) or tensor, lambda t: t):
        base(x)
    assert sorted(shape.numel() for shape in kept) == [12, 36, 48, 48, 60]


def test_frozen_it_passes_the_gradient_on():
    base = made().requires_grad_(False)
    base.fill(torch.randn(20, 12, dtype=torch.float64))
    x = torch.randn(7, 12, dtype=torch.float64, requires_grad=True)
    base(x).sum().backward()
    torch.testing.assert_close(x.grad, base.merged().sum(0).expand(7, 12))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"density": 0.0}, "density=0.0 of base='sparse_low_rank' must be a share of W between 0 and 1"),
        ({"density": True}, "density=True"),
        ({"density": "much"}, "density='much'"),
        ({"alpha": -1.0}, "alpha=-1.0 of base='sparse_low_rank' must be a number above 0"),
        ({"alpha": float("nan")}, "alpha=nan"),
        ({"blocks": 2}, "no setting 'blocks'; it takes density, alpha"),
    ],
)
def test_settings_that_cannot_be(settings, reason):
    with pytest.raises(ConfigError, match=reason):
        made(**settings)
