"""The quick form of σ's graphs: the same numbers to the bit, from fewer and cheaper calls."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from noble_fx.branches.quick import quick
from noble_fx.branches.trace import activation_program
from tests.fused_layer import layer_of


def programs(act: str):
    noble = layer_of(act).noble
    tensors = [tensor.detach() for tensor in noble.act_tensors()]
    return activation_program(noble.key, 12, torch.float32), tensors


@pytest.mark.parametrize("act", ["cosnet", "cosnet_double", "gelu", "gelu_net", "swiglu_net", "leakyrelu_net", "cos"])
@pytest.mark.parametrize("rows", [1, 7])
def test_the_same_to_the_bit(act, rows):
    program, tensors = programs(act)
    h, dt = torch.randn(rows, 12), torch.randn(rows, 12)
    with torch.no_grad():
        assert torch.equal(program.apply(h, *tensors), program.forward(h, *tensors))
        found, wanted = program.differentiate(h, *tensors, dt), program.backward(h, *tensors, dt)
    for one, other in zip(found, wanted, strict=True):
        assert one.shape == other.shape
        assert torch.equal(one, other)


def test_what_changes_nothing_is_gone():
    program, _ = programs("cosnet")
    nodes = [node for node in quick(program.backward).__self__.graph.nodes if node.op == "call_function"]
    known = {torch.mul, torch.add, torch.cos, torch.sin, torch.neg, torch.addmm, torch.mm, torch.sum, torch.t}
    assert {node.target for node in nodes} <= known  # no sizes, no views
    assert not [node for node in nodes if node.target is torch.t and node.args[0].target is torch.t]


def test_the_graph_itself_is_left_alone():
    program, _ = programs("cosnet")
    before = program.backward.code
    quick(program.backward)
    assert program.backward.code == before


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.sum([0], True).view(-1) + x.sum([0], True),  # the kept dimension is wanted as well
        lambda x: x.sum([1], True).view(-1),
        lambda x: x.sum([0, 1], True).view(-1),
        lambda x: x.sum([0], True).view(1, -1),
        lambda x: torch.add(x, x, alpha=2) * 2.0,
        lambda x: x.t().t().t(),
        lambda x: 1.0 - x,
        lambda x: x.sum([0], True, dtype=torch.float64).view(-1),
    ],
)
def test_whatever_else_there_is_stays_right(function):
    x = torch.randn(3, 5)
    graph = make_fx(function, tracing_mode="symbolic")(x)
    assert torch.equal(quick(graph)(x), function(x))
