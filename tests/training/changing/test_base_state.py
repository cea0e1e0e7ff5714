import copy

import pytest
import torch

import noble_fx
from noble_fx import ConfigError
from tests.models import tiny
from tests.training.changing.changes import step


def dense(steps: int = 3, optimizer=torch.optim.AdamW, **settings):
    model = tiny().double().train()
    made = optimizer(model.parameters(), lr=1e-3, **settings)
    for _ in range(steps):
        step(model, made)
    return model, made


def with_branches(model, optimizer=torch.optim.AdamW):
    noble_fx.zero_branches(noble_fx.transform(model, rank=4, seed=0))
    return optimizer(noble_fx.param_groups(model, lr=1e-3, weight_decay=0.01))


@pytest.mark.parametrize("how", ["state_dict", "optimizer", "names", "groups"])
def test_training_goes_on_as_without_branches(how):
    model, old = dense(weight_decay=0.01)
    plain = copy.deepcopy(model)
    alone = torch.optim.AdamW(plain.parameters(), lr=1e-3, weight_decay=0.01)
    alone.load_state_dict(copy.deepcopy(old.state_dict()))
    names = [name for name, _ in model.named_parameters()]
    base = {"names": names, "groups": [{"params": list(model.parameters())}]}.get(how)
    state = old if how == "optimizer" else old.state_dict()
    new = with_branches(model)
    assert noble_fx.load_base_state(new, state, model, base) == len(names)
    assert step(model, new) == step(plain, alone)
    for group in new.param_groups:  # what decays differs between the two: matrices alone here
        if group["name"] == "base matrices":
            mine = {id(p) for p in group["params"]}
    pairs = [(p, dict(plain.named_parameters())[n]) for n, p in model.named_parameters() if id(p) in mine]
    assert all(torch.equal(p, q) for p, q in pairs)
    assert new.state[model.head.weight]["step"] == 4
    assert new.state[model.blocks[0].fc1.noble.up]["step"] == 1
    if how == "optimizer":
        assert old.state[model.head.weight]["step"] == 3  # apart from the new one


def test_groups_in_an_order_of_ones_own():
    model = tiny().double()
    groups = [{"params": [p for p in model.parameters() if p.dim() < 2]}, {"params": [model.head.weight]}]
    old = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    step(model, old)
    moments = {id(p): state["momentum_buffer"].clone() for p, state in old.state.items()}
    saved = old.state_dict()
    new = with_branches(model, lambda groups: torch.optim.SGD(groups, momentum=0.9))
    with pytest.raises(ConfigError, match=r"held 16 parameters, and the model has 29.*pass base"):
        noble_fx.load_base_state(new, saved, model)
    assert noble_fx.load_base_state(new, saved, model, base=groups) == 16
    assert {id(p): s["momentum_buffer"].tolist() for p, s in new.state.items()} == {
        key: value.tolist() for key, value in moments.items()
    }


def test_by_name():
    model = tiny().double()
    old = torch.optim.AdamW(list(model.named_parameters()), lr=1e-3)
    step(model, old)
    named = old.state_dict()
    names = [name for name, _ in model.named_parameters()]
    keyed = {
        "state": {names[key]: value for key, value in named["state"].items()},
        "param_groups": [{**group, "params": names} for group in named["param_groups"]],
    }
    new = with_branches(model)
    for state in (named, keyed):
        assert noble_fx.load_base_state(new, state, model) == len(names)
    assert torch.equal(new.state[model.head.bias]["exp_avg"], old.state[model.head.bias]["exp_avg"])


def test_what_does_not_fit_is_refused():
    model, old = dense()
    other, _ = dense(0)
    new = with_branches(model)
    state = old.state_dict()
    swapped = {**state, "state": {**state["state"], 0: state["state"][1], 1: state["state"][0]}}
    sgd = torch.optim.SGD(other.parameters(), lr=0.1)
    cases = [
        (swapped, None, "at the place of 'blocks.0.norm.weight'"),
        (sgd.state_dict(), None, "another optimizer than AdamW: its groups have 'dampening'"),
        (state, list(other.parameters()), "no parameter of the model's own"),
        (state, ["embed.wait", *[name for name, _ in model.named_parameters()][1:29]], "'embed.wait'; nearest"),
        ({}, None, "must be an optimizer or its state_dict"),
        (state, [3], "neither a parameter"),
    ]
    for wrong, base, message in cases:
        with pytest.raises(ConfigError, match=message):
            noble_fx.load_base_state(new, wrong, model, base)
        assert not new.state
    elsewhere = torch.optim.AdamW(other.parameters())
    with pytest.raises(ConfigError, match=r"another instance of the model give the optimizer's .state_dict\(\)"):
        noble_fx.load_base_state(new, elsewhere, model)
    with pytest.raises(ConfigError, match=r"must be a torch.optim.Optimizer"):
        noble_fx.load_base_state(model, state, model)
    with pytest.raises(ConfigError, match="learns and is in no group"):
        noble_fx.load_base_state(torch.optim.AdamW([model.head.weight]), state, model)
