"""A loop that sets rates keeps their ratios."""

import warnings

import pytest
import torch
from torch import nn

import noble_fx
from noble_fx import ConfigError
from noble_fx.training.rates import check_rate
from tests.models import transformed


@pytest.mark.parametrize("make", [torch.optim.SGD, lambda g: torch.optim.Adam(g, capturable=True)])
def test_a_loop_scales_the_rates_of_all_groups(make):
    groups = noble_fx.param_groups(transformed("modules"), lr=1.0)
    if make is not torch.optim.SGD:
        groups = [{**group, "lr": torch.tensor(group["lr"])} for group in groups]
    optimizer = make(groups)
    optimizer.load_state_dict(optimizer.state_dict())  # as after a restart
    rates = [group["lr"] for group in optimizer.param_groups]
    noble_fx.scale_lr(optimizer, 0.25)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        assert float(group["lr"]) == pytest.approx(0.25 * group["lr_scale"])
        assert not isinstance(rate, torch.Tensor) or group["lr"] is rate
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    with pytest.raises(ConfigError, match=r"group 7 of the optimizer has no 'lr_scale'"):
        noble_fx.scale_lr(optimizer, 0.5)


def test_rates_that_something_else_made_equal_are_noticed_once():
    optimizer = torch.optim.SGD(noble_fx.param_groups(transformed("modules"), lr=1.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        noble_fx.scale_lr(optimizer, 0.5)
        noble_fx.scale_lr(optimizer, 0.25)
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    with pytest.warns(UserWarning, match=r"lr / lr_scale is 0.1, but of noble.up .* noble.frequency") as seen:
        noble_fx.scale_lr(optimizer, 0.1)
    assert seen[0].filename == __file__
    assert [group["lr"] for group in optimizer.param_groups] == [
        0.1 * group["lr_scale"] for group in optimizer.param_groups
    ]
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        noble_fx.scale_lr(optimizer, 0.1)


@pytest.mark.parametrize("rate", [0, 0.5, torch.tensor(0.1)])
def test_what_is_a_rate(rate):
    check_rate("lr", rate)


@pytest.mark.parametrize("rate", [-1, float("nan"), float("inf"), True, "fast", None, torch.ones(2)])
def test_what_is_none(rate):
    with pytest.raises(ConfigError, match=r"^lr=.* must be a finite number"):
        check_rate("lr", rate)


@pytest.mark.parametrize(
    "schedule",
    [
        lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda step: 0.9**step),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 10),
        lambda o: torch.optim.lr_scheduler.LinearLR(o, 0.1),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, [0.1 * g["lr_scale"] for g in o.param_groups], 10),
    ],
    ids=["LambdaLR", "CosineAnnealingLR", "LinearLR", "OneCycleLR"],
)
def test_schedulers_that_keep_the_ratios(schedule):
    optimizer = torch.optim.SGD(noble_fx.param_groups(transformed("modules"), lr=0.1))
    scheduler = schedule(optimizer)
    for _ in range(5):
        optimizer.step()
        scheduler.step()
        base = next(g["lr"] for g in optimizer.param_groups if g["lr_scale"] == 1.0)
        for group in optimizer.param_groups:
            assert group["lr"] == pytest.approx(base * group["lr_scale"])


def test_several_optimizers_and_what_is_none():
    groups = noble_fx.param_groups(transformed("modules"), lr=1.0, muon=True)
    optimizers = [torch.optim.SGD(part) for part in noble_fx.muon_split(groups)]
    noble_fx.scale_lr(optimizers, 0.5)
    assert all(g["lr"] == pytest.approx(0.5 * g["lr_scale"]) for each in optimizers for g in each.param_groups)
    for wrong in (groups, None, 0.5):
        with pytest.raises(ConfigError, match="has no param_groups"):
            noble_fx.scale_lr(wrong, 0.5)
    for rate in (float("nan"), -1.0, "1e-3", None):
        with pytest.raises(ConfigError, match="must be a finite number"):
            noble_fx.scale_lr(optimizers, rate)
