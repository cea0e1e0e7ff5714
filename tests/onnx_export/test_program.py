"""A model as one exported program: what capturing refuses, what the pipelines rewrite, what is left after lowering."""

import pytest
import torch
from torch import nn
from torch.export import Dim

import noble_fx
from noble_fx import ExportError
from noble_fx.onnx_export.program import cannot_export, capture, lower, rewrite, size_names
from noble_fx.schema import JOINED_UP, LINEAR
from tests.models import loud

X = torch.ones(2, 8)


def model() -> nn.Module:
    torch.manual_seed(0)
    return loud(noble_fx.transform(nn.Sequential(nn.Linear(8, 8), nn.GELU()), rank=2, select="all")).eval()


def targets(program) -> list:
    return [node.target for node in program.graph.nodes if node.op == "call_function"]


def test_a_site_is_one_node_then_one_joined_node_then_aten():
    captured = capture(model(), (X,), {}, None)
    assert targets(captured).count(LINEAR) == 1
    joined, steps = rewrite(captured, "export")
    assert [step.rule for step in steps if not step.skipped] == ["join_up", "remove_dead"]
    assert targets(joined).count(JOINED_UP) == 1
    lowered = lower(joined)
    assert not [target for target in targets(lowered) if "noble_fx" in str(target)]
    for batch in (2, 5):  # the batch stays dynamic through all of them
        x = torch.randn(batch, 8)
        torch.testing.assert_close(lowered.module()(x), model()(x), rtol=1e-5, atol=1e-6)


def test_a_program_without_sites_is_left_as_it_is():
    captured = capture(nn.Sequential(nn.GELU()), (X,), {}, None)
    assert rewrite(captured, "export") == (captured, [])


class Returns(nn.Module):
    def __init__(self, result):
        super().__init__()
        self.result = result

    def forward(self, x):
        return self.result(x)


@pytest.mark.parametrize(
    ("args", "result", "shapes", "message"),
    [
        ((), lambda x: x, None, "an export needs example inputs"),
        ((X, X), lambda x: x, None, r"the example inputs do not fit forward\(x\)"),
        (
            (X,),
            lambda x: (x, 3),
            None,
            "output 1 of the model is the constant 3, and an ONNX file returns tensors alone",
        ),
        ((X,), lambda x: (x, x.shape[0]), None, "output 1 of the model is a number computed from sizes"),
        ((X,), lambda x: x, {"x": {5: Dim.AUTO}}, "'x' has 2 dimensions, and axis 5 is none of them"),
        ((X,), lambda x: x + 1 if x.sum() > 0 else x, None, "the model cannot be exported"),
    ],
)
def test_what_cannot_be_captured_says_why(args, result, shapes, message):
    with pytest.raises(ExportError, match=message):
        capture(Returns(result), args, {}, shapes)


def test_the_first_cause_is_told():
    error = RuntimeError("the last of many")
    error.__cause__ = TypeError("the cause\nand a page of advice")
    assert str(cannot_export(error)) == "the model cannot be exported: TypeError: the cause"


def test_sizes_are_called_as_the_caller_calls_them():
    shapes = {"x": {0: Dim("rows", max=64), 1: Dim.AUTO}}
    assert size_names(Returns(lambda x: x), (X,), {}, shapes) == {"x": {0: "rows"}}
