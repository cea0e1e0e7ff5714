"""Copies of models whose layers keep what they computed last."""

import threading

import pytest
import torch
from torch import nn
from torch.nn.utils import prune, weight_norm

import noble_fx
from noble_fx import ConfigError
from noble_fx.attach.copying import copied_for, deep_copy
from tests.models import loud

X = torch.randn(3, 16)


def made(change):
    model = loud(noble_fx.transform(nn.Sequential(nn.Linear(16, 16)), rank=4, select=".*", seed=0)).eval()
    change(model[0])
    model(X)
    return model


COMPUTED = {
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "weight-normed": weight_norm,
    "its last result": lambda layer: setattr(layer, "seen", layer(X)),
}


@pytest.mark.parametrize("change", COMPUTED.values(), ids=COMPUTED)
def test_what_was_computed_last_is_copied_too(change):
    model = made(change)
    for copied in (deep_copy(model, {}), noble_fx.fold(model)):
        torch.testing.assert_close(copied(X), model(X))


def test_a_model_that_cannot_be_copied_cannot_be_folded_and_says_why():
    model = made(lambda layer: setattr(layer, "rows", (row for row in X)))
    with pytest.raises(ConfigError, match=r"cannot be copied.*cannot pickle 'generator' object"):
        noble_fx.fold(model)


def test_what_cannot_be_copied_is_told_by_the_verb():
    model = nn.Sequential(nn.Linear(2, 2))
    model.lock = threading.Lock()
    with pytest.raises(ConfigError, match="cannot be copied, and fold gives a copy: TypeError: cannot pickle"):
        copied_for(model, "fold")
