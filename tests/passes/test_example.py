"""Examples are graphs over the model's own modules and parameters."""

import torch
from torch.nn import functional as F

from noble_fx.passes.example import IN, OUT, RANK, Example, branch_operands, layer, layers, parameter, traced
from noble_fx.schema import LINEAR


def test_a_graph_of_a_function_of_a_model():
    model = layer()
    graph_module = traced(lambda m, x: F.linear(x, m.weight, m.bias) + m.noble(x), model)
    assert [node.op for node in graph_module.graph.nodes if node.op.startswith("call")] == [
        "call_function",
        "call_module",
        "call_function",
    ]
    assert graph_module.noble is model.noble
    assert graph_module.weight is model.weight
    x = torch.randn(5, IN)
    torch.testing.assert_close(graph_module(x), model(x))


def test_what_the_graph_does_not_read_is_there_as_well():
    assert traced(lambda m, x: m.q(x), layers()).k.weight.shape == (OUT, IN)


def test_the_operands_of_a_branch_are_those_of_the_operator():
    model, x = layer(), torch.randn(5, IN)
    operands = branch_operands(model.noble)
    assert operands[0].shape == (RANK, IN)
    y = LINEAR(x, model.weight, model.bias, *operands)
    torch.testing.assert_close(y, F.linear(x, model.weight, model.bias) + model.noble(x))


def test_experts_have_a_branch_each():
    assert len(parameter(3, IN, OUT, experts=3)().noble["w"]) == 3
    assert parameter(OUT, IN)().noble["w"].rank == RANK


def test_the_way_back():
    example = Example(before=lambda m, x: x, after=lambda m, x: x + 0, inputs=((2,),))
    assert example.reversed().before is example.after
    assert example.reversed().reversed() == example
