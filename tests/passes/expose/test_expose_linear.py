"""A chosen layer laid open is its linear map; what has a forward of its own stays a call."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import noble_fx
from noble_fx.passes.check import check_rewrite
from noble_fx.passes.example import IN, Example, layers, traced
from noble_fx.passes.expose.expose_linear import expose_linear
from noble_fx.passes.rule import run_passes

TWICE = Example(
    before=lambda m, x: m.q(x) * m.q(x + 1),
    after=lambda m, x: F.linear(x, m.q.weight, m.q.bias) * F.linear(x + 1, m.q.weight, m.q.bias),
    truth=lambda m, x: nn.Linear.forward(m.q, x) * nn.Linear.forward(m.q, x + 1),
    model=layers,
)


def without_bias() -> nn.Module:
    model = layers()
    model.q.bias = None
    return model


NO_BIAS = Example(
    before=lambda m, x: m.q(x),
    after=lambda m, x: F.linear(x, m.q.weight, None),
    truth=lambda m, x: x @ m.q.weight.t(),
    model=without_bias,
)


@pytest.mark.parametrize("example", [expose_linear.example, TWICE, NO_BIAS])
def test_rewrite(example):
    check_rewrite(expose_linear, example)


def test_an_input_by_name():
    model, x = layers(), torch.randn(5, IN)
    graph_module = traced(lambda m, x: m.q(input=x), model)
    run_passes(graph_module, [expose_linear])
    torch.testing.assert_close(graph_module(x), F.linear(x, model.q.weight, model.q.bias))


class Plain(nn.Module):
    def __init__(self, layer: nn.Module):
        super().__init__()
        self.chosen, self.plain = layer, nn.Linear(IN, IN)


def test_a_layer_without_a_branch_is_not_looked_at():
    graph_module = traced(lambda m, x: m.plain(x), Plain(nn.Linear(IN, IN)))
    assert run_passes(graph_module, [expose_linear]) == ()


def test_a_convolution_keeps_its_forward():
    model = noble_fx.transform(Plain(nn.Conv2d(IN, IN, 1)), rank=2, select=["chosen"], capture="modules")
    graph_module = traced(lambda m, x: m.chosen(x), model)
    (step,) = run_passes(graph_module, [expose_linear])
    assert step.skipped == "NobleConv2d keeps its own forward"
    x = torch.randn(2, IN, 3, 3)
    assert torch.equal(graph_module(x), model.chosen(x))
