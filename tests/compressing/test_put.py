"""A layer gets its factors and stays what it is."""

import pytest
import torch
from torch import nn

from noble_fx.bases.low_rank import LowRank
from noble_fx.compressing.put import put
from noble_fx.compressing.solve import Replacement
from tests.compressing.models import exact, places_of, with_branches


def replacement(place, bias=True, branch=False) -> Replacement:
    site, wide = place.site, torch.float64
    up, down = torch.randn(site.out_features, 3, dtype=wide), torch.randn(3, site.in_features, dtype=wide)
    new_up = torch.randn(site.out_features, place.free, dtype=wide) if branch else None
    return Replacement(up, down, torch.randn(site.out_features, dtype=wide) if bias else None, new_up, 0.25)


@pytest.mark.parametrize("name", ["blocks.0.fc1", "blocks.0.k_proj"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_it_computes_its_factors(name, dtype):
    model = exact().to(dtype)
    (place,) = places_of(model, [name])
    new, x = replacement(place), torch.randn(5, 16, dtype=dtype)
    put(place, new, "activations")
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    assert isinstance(layer.base, LowRank)
    assert (layer.base.error, layer.base.method) == (0.25, "activations")
    assert {p.dtype for p in layer.parameters()} == {dtype}
    expected = (x.double() @ (new.up @ new.down).T + new.bias).to(dtype)
    torch.testing.assert_close(layer(x), expected, rtol=2e-2, atol=0.2 if dtype == torch.bfloat16 else 1e-4)


def test_the_branch_gets_its_u():
    model = with_branches()
    (place,) = places_of(model, ["blocks.0.fc1"])
    parameter, new = place.branch.up, replacement(place, branch=True)
    put(place, new, "activations")
    assert place.layer.noble.up is parameter
    assert torch.equal(parameter, new.branch_up)
    x = torch.randn(5, 16, dtype=torch.float64)
    expected = x @ (new.up @ new.down).T + new.bias + place.layer.noble(x)
    torch.testing.assert_close(place.layer(x), expected)


@pytest.mark.parametrize("learns", [True, False])
def test_it_learns_as_before(learns):
    model = exact().requires_grad_(learns).train()
    (place,) = places_of(model, ["blocks.0.fc1"])
    put(place, replacement(place), "activations")
    assert {p.requires_grad for p in place.layer.parameters()} == {learns}
    assert place.layer.base.training


def test_no_bias_stays_none():
    (place,) = places_of(exact(), ["blocks.0.k_proj"])
    put(place, replacement(place, bias=False), "svd")
    assert place.layer.bias is None
