"""What each role learns at, and whether a scheduler has kept the ratios."""

import warnings

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR

import noble_fx
from noble_fx import ConfigError
from noble_fx.training.group_rates import lost_ratios, rates_by_role, warn_of_rates
from noble_fx.transform import named_branches
from tests.models import tiny, transformed


def made(optimizer=torch.optim.AdamW, **settings):
    model = transformed("modules")
    return model, optimizer(noble_fx.param_groups(model, lr=0.01, **settings))


def roles_of(model):
    return {id(p): role for b in named_branches(model).values() for role, p, _ in b.parameter_roles()}


def branch_parameters(model):
    return [p for branch in named_branches(model).values() for p in branch.parameters()]


def test_the_rate_of_each_role_and_of_the_rest():
    model, optimizer = made()
    ratio = 16 / 4
    preset = noble_fx.PRESETS["paper"]
    assert rates_by_role(optimizer, roles_of(model)) == pytest.approx(
        {
            "down": 0.01,
            "up": 0.01 * ratio**preset.lr_up_exponent,
            "mixer": 0.01 * ratio**preset.lr_mixer_exponent,
            "frequency": 0.01 * preset.lr_frequency,
            "phase": 0.01 * preset.lr_phase,
            "base": 0.01,
        }
    )


def test_two_optimizers_and_rates_in_tensors():
    model = transformed("modules")
    groups = noble_fx.param_groups(model, lr=0.01, muon=True, muon_lr=0.02)
    muon, adam = noble_fx.muon_split(groups)
    for group in adam:
        group["lr"] = torch.tensor(group["lr"])
    rates = rates_by_role([torch.optim.SGD(muon, lr=1.0), torch.optim.SGD(adam, lr=1.0)], roles_of(model))
    assert rates["muon"] == 0.02
    assert rates["base"] == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("make", "kept"),
    [
        (lambda o: LambdaLR(o, lambda step: (step + 1) / 7), True),
        (lambda o: LambdaLR(o, lambda step: 0.0), True),
        (lambda o: CosineAnnealingLR(o, 10), True),
        (lambda o: CosineAnnealingLR(o, 10, eta_min=0.005), False),
    ],
    ids=["linear", "at zero", "cosine", "cosine to a rate"],
)
def test_a_scheduler_that_keeps_ratios_and_one_that_does_not(make, kept):
    optimizer = made()[1]
    scheduler = make(optimizer)
    for _ in range(6):
        optimizer.step()
        scheduler.step()
    assert (lost_ratios(optimizer.param_groups) == "") is kept
    noble_fx.scale_lr(optimizer, 0.003)
    assert lost_ratios(optimizer.param_groups) == ""


def test_the_warning_names_groups_and_the_remedy_once():
    model, optimizer = made()
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    with pytest.warns(UserWarning, match=r"noble\.phase ×5 0\.002.*noble_fx\.scale_lr") as caught:
        warn_of_rates(optimizer, branch_parameters(model))
    assert "base" not in str(caught[0].message).split("but of")[1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_rates(optimizer, branch_parameters(model))


def test_branches_that_no_group_holds_are_said():
    model = tiny()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    noble_fx.transform(model, rank=4)
    parameters = branch_parameters(model)
    with pytest.warns(UserWarning, match=f"{len(parameters)} of {len(parameters)} tensors of branches are in no group"):
        warn_of_rates(optimizer, parameters)


def test_good_groups_say_nothing():
    model, optimizer = made()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_rates(optimizer, branch_parameters(model))
        warn_of_rates(torch.optim.SGD(model.parameters(), lr=0.1), branch_parameters(model))  # no "lr_scale" to compare


@pytest.mark.parametrize("optimizer", [3, [None], torch.nn.Linear(2, 2)])
def test_what_has_no_groups_is_refused(optimizer):
    with pytest.raises(ConfigError, match="has no param_groups"):
        rates_by_role(optimizer, {})
