"""A rule around the steps of an optimizer: who calls it, and when it is refused."""

import pytest
import torch
from torch import nn

from noble_fx import ConfigError
from noble_fx.training.rules import Rule
from noble_fx.training.rules.base import named_of


class Noting(Rule):
    def __init__(self):
        self.said = []

    def before_step(self):
        self.said.append("before")

    def after_step(self):
        self.said.append("after")


class Editing(Noting):
    edits_gradients = True


def optimizer():
    parameter = nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    return torch.optim.SGD([parameter], lr=0.1)


def test_an_optimizer_calls_it_around_each_step_until_it_is_let_go():
    rule, sgd = Noting(), optimizer()
    handle = rule.on(sgd)
    sgd.step()
    sgd.step(closure=lambda: torch.zeros(()))
    assert rule.said == ["before", "after"] * 2
    handle.remove()
    sgd.step()
    assert len(rule.said) == 4


@pytest.mark.parametrize("how", [lambda sgd, f: sgd.step(f), lambda sgd, f: sgd.step(closure=f)])
def test_a_closure_would_undo_what_is_edited(how):
    rule, sgd = Editing(), optimizer()
    rule.on(sgd)
    with pytest.raises(ConfigError, match="a closure computes them anew"):
        how(sgd, lambda: torch.zeros(()))
    assert rule.said == []
    sgd.step(closure=None)
    assert rule.said == ["before", "after"]


def test_a_schedule_on_the_optimizer_changes_nothing():
    rule, sgd = Editing(), optimizer()
    schedule = torch.optim.lr_scheduler.LambdaLR(sgd, lambda step: 1.0)
    rule.on(sgd)
    sgd.step()
    schedule.step()
    assert rule.said == ["before", "after"]


def test_what_is_no_optimizer_and_no_model():
    with pytest.raises(ConfigError, match=r"optimizer=3 must be a torch\.optim\.Optimizer"):
        Rule().on(3)
    with pytest.raises(ConfigError, match=r"takes an nn\.Module for a model, not int"):
        named_of(3)
