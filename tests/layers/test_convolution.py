"""1×1 convolutions with a branch, beside the class itself and beside the linear map that they are."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import noble_fx
from tests.models import loud, silent

KINDS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def made(positions: int, capture: str = "modules", **settings) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(KINDS[positions](6, 8, 1, dtype=torch.float64, **settings))
    x = torch.randn(2, 6, *[5] * positions, dtype=torch.float64)
    examples = {"example_inputs": (x,)} if capture == "export" else {}
    return noble_fx.transform(model, rank=3, select="all", capture=capture, seed=0, **examples), x


@pytest.mark.parametrize("capture", ["modules", "fx", "export"])
@pytest.mark.parametrize("positions", [1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2])
def test_the_branch_is_a_linear_map_of_the_channels(capture, positions, stride):
    model, x = made(positions, capture, stride=stride)
    layer, branch = loud(model)[0] if capture == "modules" else loud(model).get_submodule("0"), None
    branch = layer.noble
    every = x[(..., *[slice(None, None, stride)] * positions)].movedim(1, -1)
    expected = every @ layer.weight.flatten(1).t() + layer.bias + branch(every)
    torch.testing.assert_close(model(x), expected.movedim(-1, 1))


def test_unbatched_and_silent():
    model, x = made(2)
    plain = nn.Sequential(nn.Conv2d(6, 8, 1, dtype=torch.float64))
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if ".noble." not in k})
    assert torch.equal(silent(model)(x[0]), plain(x[0]))


def test_class_keys_and_the_way_back():
    model, x = made(2)
    assert isinstance(model[0], nn.Conv2d)
    base = copy.deepcopy(model)
    with noble_fx.disabled(loud(model)):
        disabled = model(x)
    noble_fx.remove(base)
    assert type(base[0]) is nn.Conv2d
    assert torch.equal(base(x), disabled)


def test_padding_is_refused_with_its_reason():
    layer = nn.Conv2d(6, 8, 1, padding=1)
    (site, _) = noble_fx.sites(nn.Sequential(layer, nn.Conv2d(8, 8, 3), nn.Linear(8, 8)), rank=2)
    assert "with padding" in site.reason


@pytest.mark.parametrize("capture", ["modules", "export"])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_around_one_position_there_is_nothing_to_pad(capture, padding):
    model, x = made(2, capture, padding=padding)
    layer = loud(model).get_submodule("0")
    pixels = x.movedim(1, -1)
    expected = pixels @ layer.weight.flatten(1).t() + layer.bias + layer.noble(pixels)
    torch.testing.assert_close(model(x), expected.movedim(-1, 1))


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.Conv2d(8, 8, 1, groups=2), "a 1x1 convolution in 2 groups, which is a map for each group of channels"),
        (nn.ConvTranspose2d(8, 8, 1), "a transposed 1x1 convolution, which no class here carries a branch for"),
    ],
    ids=["groups", "transposed"],
)
def test_other_maps_of_channels_are_listed_with_the_reason(layer, reason):
    assert {s.fqn: s.reason for s in noble_fx.sites(nn.Sequential(layer, nn.Linear(8, 8)), rank=2)}["0"] == reason


def test_larger_kernels_and_scales_of_channels_are_no_linear_maps():
    layers = (nn.Conv2d(6, 8, 3), nn.Conv2d(8, 8, 1, groups=8), nn.ConvTranspose1d(8, 8, 2), nn.Linear(8, 8))
    assert [site.fqn for site in noble_fx.sites(nn.Sequential(*layers), rank=2)] == ["3"]
