"""`NobleLinear`: an ordinary `nn.Linear` with a branch."""

import copy
import pickle

import pytest
import torch
from torch import nn

import noble_fx
from noble_fx import NobleLinear


def test_the_layer_is_an_ordinary_linear():
    layer = NobleLinear.build(8, 6, rank=2)
    assert isinstance(layer, nn.Linear)
    assert (layer.in_features, layer.out_features, layer.weight.dtype) == (8, 6, torch.float32)
    assert [name for name, _ in layer.named_parameters()][:2] == ["weight", "bias"]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_a_layer_with_a_lambda_for_its_activation_is_copied(copied):
    layer = NobleLinear.build(8, 6, rank=2, act=lambda rank: nn.Softplus())
    x = torch.randn(3, 8)
    assert torch.equal(copied(layer)(x), layer(x))


def test_branches_by_hand_take_every_setting():
    with pytest.raises(noble_fx.ConfigError, match="'colour' is not a setting"):
        NobleLinear.build(8, 6, rank=2, colour="red")
