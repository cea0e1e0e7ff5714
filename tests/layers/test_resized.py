"""Layers with a branch that get more or fewer outputs."""

import copy
import re

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import noble_fx
from noble_fx import ConfigError, NobleLinear
from tests.models import loud


def made(**settings) -> nn.Module:
    torch.manual_seed(0)
    settings = {"seed": 0, **settings}
    return loud(noble_fx.transform(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 10)), rank=4, **settings))


def resized(layer: nn.Linear, outputs: int) -> nn.Linear:
    """As transformers resizes a head: a new layer with the rows of the old one."""
    new, rows = nn.Linear(layer.in_features, outputs), min(outputs, layer.out_features)
    with torch.no_grad():
        new.weight[:rows], new.bias[:rows] = layer.weight[:rows], layer.bias[:rows]
    return new


@pytest.mark.parametrize("outputs", [13, 7])
@pytest.mark.parametrize("act", ["cosnet", "identity"])
def test_the_branch_follows_and_keeps_its_rows(outputs, act):
    model, x, rows = made(act=act), torch.randn(3, 8), min(outputs, 10)
    expected, keys, branch = model(x), list(model.state_dict()), model[1].noble
    with pytest.warns(UserWarning, match=f"'1' has {outputs} outputs now, and its branch follows"):
        model[1] = resized(model[1], outputs)
    assert type(model[1]) is NobleLinear
    assert model[1].noble is branch
    assert branch.up.shape == (outputs, 4)
    assert branch.up[rows:].abs().sum() > 0 or outputs < 10
    assert list(model.state_dict()) == keys
    torch.testing.assert_close(model(x)[:, :rows], expected[:, :rows])
    site = noble_fx.sites(model)[1]
    assert (site.selected, site.unfused, site.out_features) == (True, "", outputs)
    model(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert torch.equal(copy.deepcopy(model)(x), model(x))


def test_new_rows_are_those_that_the_seed_gives():
    rows = []
    for draws in (0, 3):
        model = made()
        torch.randn(draws)
        with pytest.warns(UserWarning, match="follows"):
            model[1] = resized(model[1], 13)
        rows.append(model[1].noble.up[10:])
    assert torch.equal(*rows)


def test_a_layer_with_rows_of_its_own_is_another_layer():
    model = made()
    model[1] = nn.Linear(8, 13)
    assert type(model[1]) is nn.Linear


def test_a_branch_that_cannot_follow_is_refused_before_the_layer_is_replaced():
    model = made()
    layer, branch = model[1], model[1].noble
    parametrize.register_parametrization(branch, "up", nn.Identity())
    with pytest.raises(ConfigError, match=re.escape("'1' is resized from 10 to 13 outputs")):
        model[1] = resized(layer, 13)
    assert model[1] is layer
    assert branch.out_features == 10
