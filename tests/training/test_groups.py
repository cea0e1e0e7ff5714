"""Groups print themselves and stay a list."""

import torch
from torch import nn

import noble_fx
from noble_fx.training.groups import Groups
from tests.models import transformed


def test_a_line_for_each_group():
    lines = str(noble_fx.param_groups(transformed("modules"), lr=0.01, weight_decay=0.1)).splitlines()
    assert lines[0].split() == ["group", "tensors", "parameters", "lr", "×", "weight", "decay"]
    assert len(lines) == 1 + len(noble_fx.param_groups(transformed("modules"), lr=0.01))
    (phase,) = (line.split() for line in lines if ".phase" in line)
    assert phase == ["noble.phase", "×5", "24", "96", "0.05", "5", "0"]


def test_with_muon_it_says_whose_each_is():
    groups = noble_fx.param_groups(transformed("modules"), lr=0.01, muon=True, muon_lr=0.02)
    whose = {line.split("  ")[0]: line.split()[-1] for line in str(groups).splitlines()[1:]}
    assert whose["base matrices (Muon)"] == "Muon"
    assert {owner for name, owner in whose.items() if "Muon" not in name} == {"Adam"}


def test_an_optimizer_takes_them_and_a_group_of_ones_own_may_say_little():
    groups = noble_fx.param_groups(transformed("modules"), lr=0.01)
    assert isinstance(groups, list)
    assert len(torch.optim.AdamW(groups).param_groups) == len(groups)
    assert "–" in str(Groups([{"params": [nn.Parameter(torch.ones(2))], "lr_scale": 1.0}]))
