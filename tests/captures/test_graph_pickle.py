"""Graphs as plain picklable values."""

import math
import operator
import pickle

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

from noble_fx.captures.graph_pickle import read_graph, set_keys, write_graph
from noble_fx.schema import LINEAR, LINEAR_GROUP
from tests.models import transformed


def through(graph: fx.Graph) -> fx.Graph:
    return read_graph(pickle.loads(pickle.dumps(write_graph(graph))))


def text(graph: fx.Graph) -> str:
    return "\n".join(f"{n.op} {n.name} {n.target} {n.args} {n.kwargs}" for n in graph.nodes)


@pytest.mark.parametrize(
    "function",
    [
        operator.add, operator.getitem, getattr, math.floor, torch.relu, torch.flatten, torch.Tensor.add, F.gelu,
        F.scaled_dot_product_attention, torch.ops.aten.linear.default, torch.ops.higher_order.cond, nn.init.zeros_,
        LINEAR, LINEAR_GROUP,
    ],
)  # fmt: skip
def test_every_kind_of_function_is_found_again(function):
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output(graph.call_function(function, (x, 1)))
    again = [node for node in through(graph).nodes if node.op == "call_function"]
    assert [node.target for node in again] == [function]


def test_what_no_import_finds_is_refused():
    def local(x):
        return x

    graph = fx.Graph()
    graph.output(graph.call_function(local, (graph.placeholder("x"),)))
    with pytest.raises(pickle.PicklingError, match="no import finds again"):
        write_graph(graph)


def test_structures_and_names_come_back():
    graph = fx.Graph()
    x = graph.placeholder("x")
    part = graph.call_function(operator.getitem, (x, (slice(None, None, None), slice(0, x, 2), ..., None)))
    joined = graph.call_function(torch.cat, ([part, x],), {"dim": -1})
    view = graph.call_method("to", (joined, torch.float16))
    graph.output({"a": [view, (x, 3.5)], "b": torch.device("cpu")})
    again = through(graph)
    assert text(again) == text(graph)
    again.lint()


def test_a_traced_model_comes_back():
    class Net(nn.Module):
        def forward(self, x, y):
            return torch.relu(x).flatten(1) + F.gelu(y).sum((1, 2), keepdim=True) @ x.transpose(0, 1)

    graph = fx.Tracer().trace(Net())
    assert text(through(graph)) == text(graph)


def test_keys_are_those_of_the_branches():
    model = transformed("fx")
    graph = through(model.graph)
    fused = [node for node in graph.nodes if node.target in (LINEAR, LINEAR_GROUP)]
    assert len(fused) == 10
    for node in fused:
        node.args = (*node.args[:-1], "of another version")
    set_keys(graph, model)
    assert text(graph) == text(model.graph)
