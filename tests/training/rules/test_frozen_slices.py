"""Slices that no optimizer moves, to the bit."""

import pytest
import torch
from torch import nn

import noble_fx
from noble_fx import ConfigError
from noble_fx.training.rules import FrozenSlices
from tests.models import tiny, tokens

OPTIMIZERS = {
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.5),
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.1),
}


def trained(model, optimizer, steps=4):
    for _ in range(steps):
        optimizer.zero_grad()
        model(tokens()).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_rows_and_columns_stay_and_the_rest_learns(kind):
    model = noble_fx.transform(tiny(), rank=4, act="identity", seed=0)
    branch = model.blocks[0].fc1.noble
    optimizer = OPTIMIZERS[kind](model.parameters())
    rule = FrozenSlices(model)
    rule.on(optimizer)
    trained(model, optimizer)  # momentum in all of it
    rule.hold("blocks.0.fc1.noble.up", 1, [0, 2])
    rule.hold("blocks.0.fc1.noble.down", 0, slice(0, 3))
    up, down = branch.up.detach().clone(), branch.down.detach().clone()
    trained(model, optimizer)
    assert torch.equal(branch.up[:, [0, 2]], up[:, [0, 2]])
    assert torch.equal(branch.down[:3], down[:3])
    assert (branch.up[:, [1, 3]] != up[:, [1, 3]]).all()
    assert (branch.down[3] != down[3]).all()


def test_a_gradient_of_zero_would_not_do():
    parameter = nn.Parameter(torch.ones(2))
    optimizer = OPTIMIZERS["AdamW"]([parameter])
    parameter.grad = torch.zeros(2)
    optimizer.step()
    assert (parameter != 1).all()


def test_more_is_held_step_by_step_and_let_go_again():
    model = nn.Linear(4, 3)
    rule = FrozenSlices(model)
    rule.hold("weight", 1, [2])
    rule.hold("weight", 1, torch.tensor([0]))
    rule.hold("weight", 0, torch.tensor([False, True, False]))
    rule.hold("bias", 0, [0])
    assert rule.held == {("weight", 1): [0, 2], ("weight", 0): [1], ("bias", 0): [0]}
    rule.release("weight")
    assert rule.held == {("bias", 0): [0]}
    rule.release()
    before = model.bias.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    rule.on(optimizer)
    model(torch.ones(4)).sum().backward()
    optimizer.step()
    assert (model.bias != before).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("wieght", 0, [0]), "has no parameter 'wieght'; nearest: 'weight'"),
        (("weight", 2, [0]), "dim=2 is no dimension of 'weight', which has 2"),
        (("weight", 0, [3]), "must be from 0 to 2"),
        (("weight", 0, [0.5]), "whole numbers"),
    ],
)
def test_what_is_not_there(arguments, message):
    rule = FrozenSlices(nn.Linear(4, 3))
    with pytest.raises(ConfigError, match=message):
        rule.hold(*arguments)
    assert rule.held == {}
    with pytest.raises(ConfigError, match="no parameter 'x'"):
        rule.release("x")
