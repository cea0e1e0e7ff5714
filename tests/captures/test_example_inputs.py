"""Example inputs through JSON and back."""

import json

import pytest
import torch
from torch.export import Dim

from noble_fx.captures.call import Fixed
from noble_fx.captures.example_inputs import describe, rebuild

CPU = torch.device("cpu")
IDS = Fixed((None, None), torch.int64, (2, 6))
IMAGE = Fixed((None, 3, 4), torch.float32, (2, 3, 4))
SCALAR = Fixed((), torch.bool, ())


def test_there_and_back():
    examples = {"ids": IDS, "pair": (IMAGE, None), "several": [SCALAR, 1.5], "named": {"a": IMAGE, "b": "text"}}
    inputs, shapes = rebuild(json.loads(json.dumps(describe(examples))), CPU)
    assert inputs["ids"].shape == (2, 6)
    assert inputs["ids"].dtype == torch.int64
    assert not inputs["ids"].any()
    assert isinstance(inputs["pair"], tuple)
    assert inputs["pair"][0].shape == (2, 3, 4)
    assert inputs["pair"][1] is None
    assert inputs["several"][0].dtype == torch.bool
    assert inputs["several"][1] == 1.5
    assert inputs["named"]["b"] == "text"
    auto = {0: Dim.AUTO}
    assert shapes == {
        "ids": {0: Dim.AUTO, 1: Dim.AUTO},
        "pair": (auto, None),
        "several": [None, None],
        "named": {"a": auto, "b": None},
    }


@pytest.mark.parametrize("value", [torch.float32, object(), {1: IDS}, [object()]], ids=["dtype", "object", "key", "in"])
def test_what_json_cannot_hold_is_not_described(value):
    assert describe({"x": IDS, "other": value}) is None


@pytest.mark.parametrize(
    "described",
    [
        1,
        {},
        {"tensor": [2], "dtype": "colour", "dynamic": []},
        {"tensor": [-2], "dtype": "float32", "dynamic": []},
        {"tensor": [2.5], "dtype": "float32", "dynamic": []},
        {"tensor": [2], "dtype": "float32"},
        {"list": 3},
        {"dict": [1]},
        {"list": [{"value": 1}, {"tensor": "x"}]},
    ],
)
def test_anything_else_is_refused(described):
    with pytest.raises(ValueError, match="describes no input"):
        rebuild({"x": described}, CPU)
