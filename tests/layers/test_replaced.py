"""Layers with a branch that another tool replaces by a layer of its own over the same weight."""

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import noble_fx
from noble_fx import ConfigError, NobleLinear
from tests.models import loud


class Rounded(nn.Linear):
    """What torchao makes of a layer for float8 or quantization-aware training: the same weight, another forward."""

    @classmethod
    def of(cls, layer: nn.Linear) -> nn.Linear:
        with torch.device("meta"):
            made = cls(layer.in_features, layer.out_features)
        made.weight, made.bias = layer.weight, layer.bias
        return made

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.detach().round(decimals=1) + self.weight - self.weight.detach(), self.bias)


class Plain(Rounded):
    """What converts it back: nn.Linear's own forward."""

    forward = nn.Linear.forward


class Pair(Rounded):
    """A layer that can carry no branch."""

    def forward(self, x: Tensor):
        return F.linear(x, self.weight), self.bias


def made(**settings) -> nn.Module:
    torch.manual_seed(0)
    return loud(noble_fx.transform(nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 16)), rank=4, **settings))


def convert(model: nn.Module, kind: type[Rounded]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, child in list(model.named_children()):
            if isinstance(child, nn.Linear):
                setattr(model, name, kind.of(child))


def test_a_branch_moves_on_to_the_layer_over_the_same_weight():
    model, x = made(), torch.randn(3, 16)
    keys, branch = list(model.state_dict()), model[0].noble
    convert(model, Rounded)
    assert isinstance(model[0], Rounded)
    assert model[0].noble is branch
    assert list(model.state_dict()) == keys
    torch.testing.assert_close(model[0](x), Rounded.forward(model[0], x) + branch(x))
    reason = "Rounded has a forward of its own, beside which the branch runs"
    assert [(site.selected, site.unfused) for site in noble_fx.sites(model)] == [(True, reason)] * 2
    model(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert torch.equal(copy.deepcopy(model)(x), model(x))


def test_on_the_way_back_it_is_fused_again():
    model, x = made(), torch.randn(3, 16)
    expected = model(x)
    convert(model, Rounded)
    convert(model, Plain)
    assert [site.unfused for site in noble_fx.sites(model)] == ["", ""]
    assert torch.equal(model(x), expected)
    noble_fx.remove(model)
    assert type(model[0]) is Plain


def test_what_was_asked_to_run_eagerly_stays_eager():
    model = made(fuse=False)
    convert(model, Plain)
    assert {site.unfused for site in noble_fx.sites(model)} == {"fuse=False"}


def test_the_user_is_told():
    model = made()
    with pytest.warns(UserWarning, match="replaced by Rounded over the same weight; their branches move on to it"):
        model[0] = Rounded.of(model[0])
    assert isinstance(model[0], Rounded)
    assert all(site.selected for site in noble_fx.sites(model))


def test_a_layer_that_cannot_carry_it_is_refused_before_anything_is_changed():
    model = made()
    layer = model[0]
    with pytest.raises(
        ConfigError, match=r"'0' has a branch, which the Pair .* cannot carry: Pair has a forward .*remove"
    ):
        convert(model, Pair)
    assert model[0] is layer
    assert all(site.selected for site in noble_fx.sites(model))


def test_wrappers_and_other_layers_are_left_alone():
    class Wrapper(nn.Module):
        def __init__(self, layer: nn.Linear):
            super().__init__()
            self.layer, self.weight = layer, layer.weight

    model = made()
    layer = model[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model[0] = Wrapper(layer)
        model[2] = nn.Linear(16, 16)
        model[0] = layer
    assert type(model[0]) is NobleLinear
    assert type(model[2]) is nn.Linear
