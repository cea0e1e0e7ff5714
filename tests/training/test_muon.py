"""Muon and AdamW side by side."""

import pytest
import torch
from torch import nn

import noble_fx
from noble_fx import ConfigError
from tests.models import tokens, transformed


def test_both_optimizers_train_their_own_and_a_schedule_reaches_both():
    model = transformed("modules")
    groups = noble_fx.param_groups(model, lr=1e-3, weight_decay=0.1, muon=True, muon_lr=0.02)
    muon, adam = noble_fx.muon_split(groups)
    optimizers = [torch.optim.Muon(muon), torch.optim.AdamW(adam)]
    taken = [id(p) for o in optimizers for group in o.param_groups for p in group["params"]]
    assert sorted(taken) == sorted(id(p) for p in model.parameters())
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model(tokens()).square().mean().backward()
    for optimizer in optimizers:
        noble_fx.scale_lr(optimizer, 0.5e-3)
        optimizer.step()
    assert optimizers[0].param_groups[0]["lr"] == pytest.approx(0.01)
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_groups_that_do_not_say_whose_they_are_are_refused():
    with pytest.raises(ConfigError, match=r"group 0 has no 'use_muon'.*muon=True"):
        noble_fx.muon_split(noble_fx.param_groups(transformed("modules"), lr=1e-3))


@pytest.mark.parametrize("wrong", [None, nn.Linear(2, 2), torch.optim.SGD([torch.ones(1)])])
def test_what_holds_no_groups(wrong):
    with pytest.raises(ConfigError, match="muon_split takes"):
        noble_fx.muon_split(wrong)
    with pytest.raises(ConfigError, match="group 0 is"):
        noble_fx.muon_split([torch.ones(2)])
