"""Adapters in a model's tree: found, put in, taken out; what is frozen meanwhile."""

import pytest
import torch
from torch import nn

import noble_fx
from noble_fx import ConfigError
from noble_fx.attach.adapters import (
    adapter_names,
    check_known,
    check_none,
    described_adapters,
    freeze,
    named_adapters,
    thaw,
    told_by_adapters,
)


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 20), nn.GELU(), nn.Linear(20, 12), nn.Linear(12, 6))


def stacked(**settings: object) -> nn.Sequential:
    model = noble_fx.transform(plain(), rank=4, select=["0", "2"], seed=0)
    return noble_fx.transform(model, branch="lora", **{"rank": 2, "select": ["0", "3"], "seed": 1, **settings})


def test_they_go_by_the_names_of_their_layers():
    model = stacked()
    assert list(named_adapters(model)) == ["0", "3"]
    assert adapter_names(model) == ("default",)
    assert adapter_names(plain()) == ()
    assert "0.noble.adapters.default.down" in model.state_dict()
    assert not any("gate" in name for name in model.state_dict())


def test_what_is_frozen_learns_again():
    model = plain()
    model[0].bias.requires_grad_(False)
    noble_fx.transform(model, branch="lora", rank=2, select=["2"])
    assert [name for name, p in model.named_parameters() if p.requires_grad] == [
        "2.noble.adapters.default.down",
        "2.noble.adapters.default.up",
    ]
    model[3].weight.requires_grad_(True)  # a head that the user trains along
    freeze(model)
    assert model[3].weight.requires_grad
    thaw(nn.Sequential(model))
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["0.bias"]


def test_what_a_file_says():
    described = described_adapters(stacked(alpha=4, rslora=False))
    said = {"rank": 2, "alpha": 4.0, "rslora": False, "dropout": 0.0, "seed": 1, "weight": 1.0}
    assert described == {"0": {"default": said}, "3": {"default": said}}


def test_names_that_are_none():
    with pytest.raises(ConfigError, match=r"defualt is no adapter of this model; did you mean 'default'|defualt is no"):
        check_known(stacked(), ["defualt"])
    with pytest.raises(ConfigError, match="the model has no adapters"):
        check_known(plain(), ["default"])


def test_verbs_that_know_nothing_of_them():
    check_none(plain(), "noble_fx.set_rank")
    with pytest.raises(ConfigError, match=r"noble_fx.set_rank knows nothing of .* has default: merge"):
        check_none(stacked(), "noble_fx.set_rank")


def test_whether_settings_make_the_model_again():
    model = noble_fx.transform(plain(), branch="lora", rank=2, select="all")
    assert not told_by_adapters(stacked())
    assert not told_by_adapters(model)
    noble_fx.transform(model, branch="lora", rank=2, select=["0"], adapter="more")
    assert told_by_adapters(model)
    noble_fx.drop_adapters(model, "default")
    assert told_by_adapters(model)
