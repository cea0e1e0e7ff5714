"""Inputs, outputs and sizes are called as the model's author calls them."""

import onnx
import pytest
import torch
from torch import nn

import noble_fx
from noble_fx.runtime import OnnxModel
from tests.models import loud, tiny, tokens
from tests.samples import long


def shapes_of(path):
    graph = onnx.load(path).graph
    sizes = [value.type.tensor_type.shape.dim for value in (*graph.input, *graph.output)]
    return [[dim.dim_param or dim.dim_value for dim in dims] for dims in sizes]


def test_dynamic_sizes_have_names(tmp_path):
    model = noble_fx.transform(tiny(layers=1), rank=4)
    noble_fx.export_onnx(model, (tokens(),), tmp_path / "m.onnx")
    assert shapes_of(tmp_path / "m.onnx") == [["batch", "sequence"], ["batch", "sequence", 20]]


def test_names_that_the_caller_gave_come_first(tmp_path):
    model = noble_fx.transform(tiny(layers=1), rank=4)
    shapes = ({0: torch.export.Dim("rows"), 1: torch.export.Dim.AUTO},)
    noble_fx.export_onnx(model, (tokens(3, 5),), tmp_path / "m.onnx", dynamic_shapes=shapes)
    assert shapes_of(tmp_path / "m.onnx") == [["rows", "sequence"], ["rows", "sequence", 20]]


class Two(nn.Module):
    def forward(self, a, b):
        return a.mean(0), b.mean(0)


def test_two_sizes_of_one_name_are_told_apart(tmp_path):
    shapes = ({0: torch.export.Dim.AUTO}, {0: torch.export.Dim.AUTO})
    noble_fx.export_onnx(Two(), (torch.ones(3, 4), torch.ones(5, 4)), tmp_path / "m.onnx", dynamic_shapes=shapes)
    assert shapes_of(tmp_path / "m.onnx")[:2] == [["batch", 4], ["b_batch", 4]]


class Named(nn.Module):
    """Returns what `wrap` makes of a few tensors."""

    def __init__(self, wrap):
        super().__init__()
        self.linear, self.wrap = nn.Linear(4, 4), wrap

    def forward(self, x):
        return self.wrap(x, self.linear(x))


@pytest.mark.parametrize(
    ("wrap", "names"),
    [
        (lambda x, y: y, ["output"]),
        long(lambda x, y: (y, y + 1), ["output_0", "output_1"]),
        (lambda x, y: {"logits": y, "states": [y + 1, y + 2]}, ["logits", "states_0", "states_1"]),
        (lambda x, y: [{"a": y}, None, y + 1], ["output_0_a", "output_2"]),
        long(lambda x, y: {"x": y, "none": None}, ["x_out"]),  # x is the input's name
        (lambda x, y: {"same": x, "y": y}, ["same", "y"]),
        (lambda x, y: {"x": x, "y": y}, ["x_out", "y"]),
        long(lambda x, y: {"one": y, "other": y}, ["one", "other"]),
    ],
)
def test_outputs_are_called_as_the_model_does(wrap, names, tmp_path):
    model = loud(noble_fx.transform(Named(wrap), rank=2, select="all", capture="modules"))
    report = noble_fx.export_onnx(model, (torch.randn(3, 4),), tmp_path / "m.onnx")
    assert list(report.outputs) == OnnxModel(report.path).outputs == names
    assert list(report.inputs) == ["x"]
    assert report.largest_error < 1e-5
    outputs = OnnxModel(report.path)(x=torch.randn(2, 4))
    assert (1 if isinstance(outputs, torch.Tensor) else len(outputs)) == len(names)
