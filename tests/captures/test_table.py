"""The captures by name, and the captured models inside a model."""

import copy

import pytest
import torch
from torch import nn

import noble_fx
from noble_fx import ConfigError
from noble_fx.captures import Capture, captured, register_capture, table
from noble_fx.errors import Refusal
from tests.captures.test_base import Unchecked
from tests.models import loud, silent, tiny, tokens


class Lacking(Capture):
    def plan(self, model, config, examples):
        return Refusal("never")


@pytest.mark.parametrize(
    ("name", "capture", "message"),
    [
        ("fx", Unchecked, "'fx' is noble_fx's own"),
        ("mine", Lacking, "Lacking is no capture yet: it lacks build"),
        ("mine", dict, "dict is no capture: derive a class from noble_fx.captures.Capture"),
        ("mine", Unchecked(), "is no capture: derive a class"),
    ],
)
def test_what_is_no_capture_cannot_be_registered(name, capture, message):
    with pytest.raises(ConfigError, match=message):
        register_capture(name, capture)
    with pytest.raises(ConfigError, match="capture='mine' is unknown"):
        noble_fx.NobleConfig(capture="mine")


def test_a_name_that_another_process_registered():
    register_capture("unchecked", Unchecked)
    config = noble_fx.NobleConfig(rank=4, capture="unchecked")
    del table._TABLE["unchecked"]
    with pytest.raises(ConfigError, match="'unchecked' is not registered in this process"):
        noble_fx.transform(tiny(), config=config)


@pytest.mark.parametrize("capture", ["fx", "export"])
def test_captured_models_inside_another(capture):
    examples = {"example_inputs": (tokens(),)} if capture == "export" else {}
    whole = nn.ModuleDict({"inner": loud(noble_fx.transform(tiny(), rank=4, capture=capture, seed=0, **examples))})
    x, base = tokens(), tiny()(tokens())
    twin = copy.deepcopy(whole)
    assert [module for _, module in captured(twin)] == [twin["inner"]]
    assert len(noble_fx.programs(twin)) == (2 if capture == "export" else 1)
    with noble_fx.disabled(twin):
        assert torch.equal(twin["inner"](x), base)
    assert not torch.equal(twin["inner"](x), base)
    noble_fx.remove(twin)
    assert torch.equal(twin["inner"](x), base)
    assert not torch.equal(whole["inner"](x), base)
    torch.testing.assert_close(silent(whole)["inner"](x), base)
