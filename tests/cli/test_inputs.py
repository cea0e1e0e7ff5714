"""Example inputs from their descriptions."""

import pytest
import torch
from torch import nn

from noble_fx.cli.inputs import example_inputs, needed_inputs
from noble_fx.errors import ConfigError


def test_inputs_by_place_and_by_name():
    args, named = example_inputs(["2x3", "mask=4:bool", "ids=2x5:int64"], nn.Embedding(7, 2))
    assert [t.shape for t in args] == [(2, 3)]
    assert (named["mask"].dtype, named["ids"].dtype) == (torch.bool, torch.int64)
    assert named["ids"].max() < 7


def test_no_inputs():
    with pytest.raises(ConfigError, match="export needs an example input"):
        needed_inputs([], nn.Linear(2, 2))
