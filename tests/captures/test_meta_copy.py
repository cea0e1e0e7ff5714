"""Copies without values, and models without their branches for a while."""

import pytest
import torch
from torch import nn

import noble_fx
from noble_fx.attach.attach import named_branches
from noble_fx.captures.base import Declined
from noble_fx.captures.meta_copy import meta_copy, to_meta, without_branches
from tests.models import tiny, tokens, transformed


def test_a_copy_has_names_shapes_ties_and_no_values():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
            self.two.weight = self.one.weight
            self.one.bias.requires_grad_(False)
            self.register_buffer("steps", torch.ones(3))

    model = Tied()
    copied = meta_copy(model)
    assert type(copied) is Tied
    assert copied.two.weight is copied.one.weight
    assert all(tensor.is_meta for tensor in copied.state_dict().values())
    assert [(n, p.shape, p.requires_grad) for n, p in copied.named_parameters()] == [
        (n, p.shape, p.requires_grad) for n, p in model.named_parameters()
    ]
    copied.steps.add_(1)
    assert model.steps._version == 0


def test_a_copy_of_a_model_on_meta_is_one_of_its_own():
    with torch.device("meta"):
        model = nn.BatchNorm1d(4)
    copied = meta_copy(model)
    copied.running_mean.add_(1)
    assert model.running_mean._version == 0
    assert copied.weight is not model.weight


def test_what_cannot_be_copied_is_declined():
    model = nn.Linear(2, 2)
    model.lock = (n for n in range(3))
    with pytest.raises(Declined, match="cannot be copied: TypeError: cannot pickle 'generator'"):
        meta_copy(model)


def test_branches_are_away_inside_and_back_afterwards():
    model, x = transformed("modules"), tokens()
    expected, keys, branches = model(x), list(model.state_dict()), named_branches(model)
    with without_branches(model):
        assert torch.equal(model(x), tiny()(x))
        assert not named_branches(model)
    with pytest.raises(RuntimeError, match="inside"), without_branches(model):
        raise RuntimeError("inside")
    assert torch.equal(model(x), expected)
    assert list(model.state_dict()) == keys
    assert all(named_branches(model)[name] is branch for name, branch in branches.items())
    assert isinstance(model.blocks[0].fc1, noble_fx.NobleLinear)


def test_inputs_lose_their_values_alone():
    assert to_meta(torch.ones(2, 3)).is_meta
    assert to_meta("text") == "text"
