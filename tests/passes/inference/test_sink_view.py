"""A change of shape moves behind pointwise maths, and only behind such."""

import operator

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

from noble_fx.passes.check import check_rewrite
from noble_fx.passes.example import Example, traced
from noble_fx.passes.inference.sink_view import is_pointwise, sink_view
from noble_fx.passes.match import ModelGraph
from noble_fx.passes.pipeline import PIPELINES
from noble_fx.passes.rule import run_passes

aten = torch.ops.aten
SHAPE = ((6, 4),)


def viewed(x):
    return aten.view.default(x, [2, 3, 4])


def reshaped(x):
    return aten.reshape.default(x, [2, 3, 4])


EXAMPLES = {
    "own": sink_view.example,
    "two tensors": Example(
        lambda m, x, y: aten.mul.Tensor(viewed(x), viewed(y)),
        lambda m, x, y: reshaped(aten.mul.Tensor(x, y)),
        inputs=(*SHAPE, *SHAPE),
    ),
    "a tensor twice": Example(
        lambda m, x: (lambda a: aten.mul.Tensor(a, a))(viewed(x)),
        lambda m, x: reshaped(aten.mul.Tensor(x, x)),
        inputs=SHAPE,
    ),
    "a number": Example(
        lambda m, x: aten.add.Tensor(viewed(x), 2, alpha=3),
        lambda m, x: reshaped(aten.add.Tensor(x, 2, alpha=3)),
        inputs=SHAPE,
    ),
    "two in a row": Example(
        lambda m, x: aten.tanh.default(aten.relu.default(viewed(x))),
        lambda m, x: reshaped(aten.tanh.default(aten.relu.default(x))),
        inputs=SHAPE,
    ),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_rewrite(name):
    check_rewrite(sink_view, EXAMPLES[name])


def with_values(function, *shapes) -> fx.GraphModule:
    """A graph whose values are known, as an exporter leaves it."""
    graph_module = traced(function, nn.Module())
    inputs = iter(torch.empty(shape, device="meta") for shape in shapes)
    for node in graph_module.graph.nodes:
        if node.op == "placeholder":
            node.meta["val"] = next(inputs)
        elif node.op == "call_function":
            args = fx.map_arg(node.args, lambda n: n.meta["val"])
            node.meta["val"] = node.target(*args, **node.kwargs)
    return graph_module


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda m, x, y: aten.relu.default(x), "not of views alone"),
        (lambda m, x, y: aten.mul.Tensor(viewed(x), y), "not of views alone"),
        (
            lambda m, x, y: aten.mul.Tensor(aten.view.default(x, [24, 1]), aten.view.default(x, [1, 24])),
            "its inputs are views of different shapes",
        ),
        (
            lambda m, x, y: aten.mul.Tensor(viewed(x), aten.view.default(y, [2, 3, 4])),
            "its inputs are views of different shapes",
        ),
    ],
    ids=["no view", "one view", "different views", "of different shapes"],
)
def test_refusal(function, reason):
    graph_module = with_values(function, (6, 4), (2, 3, 4))
    (step,) = run_passes(graph_module, [sink_view])
    assert step.skipped == reason


def looked_at(graph_module: fx.GraphModule) -> list:
    graph = ModelGraph(graph_module)
    return [node.target for node in graph_module.graph.nodes if sink_view.matches(node, graph)]


def test_only_pointwise_operators_of_known_results_are_looked_at():
    assert looked_at(with_values(lambda m, x: aten.relu.default(x), (2, 2))) == [aten.relu.default]
    assert looked_at(with_values(lambda m, x: aten.mm.default(x, x), (2, 2))) == []
    assert looked_at(traced(lambda m, x: aten.relu.default(x), nn.Module())) == []
    assert looked_at(traced(lambda m, x: operator.add(x, 1), nn.Module())) == []
    node = with_values(lambda m, x: aten.relu.default(x), (2, 2)).graph.find_nodes(op="output")[0]
    assert not is_pointwise(node)


class Views(nn.Module):
    def forward(self, x, y):
        a, b = x.reshape(2, 3, 4), y.reshape(2, 3, 4)
        return F.gelu(a).reshape(-1, 4) * 2, (a * b).reshape(6, 4), (a + b[:, :1]).reshape(6, 4)


def test_views_sink_and_vanish():
    x, y = torch.randn(6, 4), torch.randn(6, 4)
    dims = {0: torch.export.Dim.STATIC}
    program = torch.export.export(Views(), (x, y), dynamic_shapes=(dims, dims), strict=False)
    graph_module = program.run_decompositions({}).graph_module
    expected = graph_module(x, y)
    steps = run_passes(graph_module, PIPELINES["rows"])
    assert {step.rule for step in steps if not step.skipped} == {"sink_view", "merge_view"}
    graph_module.graph.eliminate_dead_code()
    graph_module.recompile()
    for value, wanted in zip(graph_module(x, y), expected, strict=True):
        torch.testing.assert_close(value, wanted)
    left = [n for n in graph_module.graph.nodes if n.target in (aten.view.default, aten.reshape.default)]
    assert len(left) == 3  # those of a + b[:, :1], whose shapes differ
    assert all(step.skipped for step in run_passes(graph_module, PIPELINES["rows"]))
