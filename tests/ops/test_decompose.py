"""Compiled on the CPU, an operator is the operators of PyTorch that it is made of; exported, it stays one."""

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import nn
from torch._dynamo.backends.common import aot_autograd

import noble_fx
from noble_fx.ops import decompose
from tests.fused_layer import layer_of


def compiled(function, graphs: list[torch.fx.GraphModule]):
    """`function`, whose graphs of forward and backward are kept."""

    def keep(graph, example_inputs):
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    torch._dynamo.reset()
    return torch.compile(function, backend=aot_autograd(fw_compiler=keep), fullgraph=True)


def own_operators(graphs) -> set[str]:
    names = {str(node.target) for graph in graphs for node in graph.graph.nodes}
    return {name for name in names if name.startswith("noble_fx.")}


@pytest.mark.parametrize("training", [True, False])
def test_a_compiled_layer_holds_none_of_our_operators(training):
    layer, x, graphs = layer_of(), torch.randn(3, 5, 40, requires_grad=training), []
    run = compiled(layer, graphs)
    with torch.set_grad_enabled(training):
        y = run(x)
        torch.testing.assert_close(y, layer(x), rtol=1e-5, atol=1e-5)
    if training:
        inputs, dy = [x, *layer.parameters()], torch.randn_like(y)
        found, wanted = (torch.autograd.grad(one, inputs, dy) for one in (y, layer(x)))
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * other.abs().max().item())
    assert len(graphs) == 1 + training
    assert own_operators(graphs) == set()


def test_groups_come_apart_too():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k = nn.Linear(40, 40), nn.Linear(40, 24)

        def forward(self, x):
            return self.q(x).sum() * self.k(x).cos().sum()

    model = noble_fx.transform(Two(), rank=8, select=".*", capture="fx", seed=0)
    x, graphs = torch.randn(3, 40), []
    run = compiled(lambda x: model(x), graphs)
    loss = run(x)
    found, wanted = (torch.autograd.grad(one, list(model.parameters())) for one in (loss, model(x)))
    assert own_operators(graphs) == set()
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_rows_may_be_any_number():
    layer, graphs = layer_of(), []
    run = compiled(layer, graphs)
    for rows in (3, 7, 11):
        x = torch.randn(rows, 40)
        torch.testing.assert_close(run(x), layer(x), rtol=1e-5, atol=1e-5)
    assert len(graphs) <= 2 * 2  # once for the first size, once for any


def test_on_another_device_it_stays_whole(monkeypatch):
    layer, x, graphs = layer_of(), torch.randn(3, 40), []
    monkeypatch.setattr(decompose, "_device", lambda first: "cuda")
    run = compiled(layer, graphs)
    run(x).sum().backward()
    assert own_operators(graphs) == {"noble_fx.linear_forward.default", "noble_fx.linear_backward.default"}


def test_a_program_that_is_exported_keeps_the_operator():
    model = noble_fx.transform(nn.Sequential(nn.Linear(40, 24)), rank=8, select=".*", seed=0)
    (program,) = noble_fx.programs(model, (torch.randn(3, 40),))
    assert "noble_fx.linear" in str(program.graph_module.graph) or "noble_fx::linear" in program.code
