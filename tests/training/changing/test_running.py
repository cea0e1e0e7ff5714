import pytest
import torch
from torch import nn

import noble_fx
from noble_fx import ConfigError
from noble_fx.training.changing.running import running
from tests.models import tiny, transformed


def test_the_model_inside_torch_compile():
    model = transformed()
    found = running(torch.compile(model, backend="eager"))
    assert found.model is model
    assert len(found.selected) == 12
    assert found.branches(found.selected[0]) == [model.blocks[0].q_proj.noble]


def test_a_tied_parameter_is_refused():
    model = transformed()
    model.blocks[1].fc1.noble.down = model.blocks[0].fc1.noble.down
    with pytest.raises(ConfigError, match=r"'down' of the branch at 'blocks.0.fc1' is a parameter of another"):
        running(model)


def test_a_layer_of_two_names_is_one():
    model = tiny()
    model.blocks[1].fc1 = model.blocks[0].fc1
    noble_fx.transform(model, rank=4)
    assert len(running(model).selected) == 11


def test_a_larger_model_is_sent_to_the_one_that_was_transformed():
    outer = nn.ModuleDict({"inner": transformed()})
    with pytest.raises(ConfigError, match=r"'inner.blocks.0.q_proj.noble' was called 'blocks.0.q_proj'"):
        running(outer)
