"""Nothing is left that the result does not need, and what it needs is left."""

import torch
from torch import nn
from torch.nn import functional as F

from noble_fx.passes.check import check_rewrite
from noble_fx.passes.example import IN, layer, layers, traced
from noble_fx.passes.inference.remove_dead import remove_dead
from noble_fx.passes.rule import run_passes


def names(graph_module) -> list[str]:
    return sorted([*dict(graph_module.named_parameters()), *dict(graph_module.named_buffers())])


def test_rewrite():
    check_rewrite(remove_dead)


def test_parameters_and_buffers_that_nothing_reads_go():
    model = layers()
    model.register_buffer("table", torch.ones(2))
    graph_module, x = traced(lambda m, x: F.linear(x, m.q.weight) + m.table.sum(), model), torch.randn(3, IN)
    expected = graph_module(x)
    (step,) = run_passes(graph_module, [remove_dead])
    assert step.skipped == ""
    assert names(graph_module) == ["q.weight", "table"]
    assert torch.equal(graph_module(x), expected)


def test_a_module_that_has_two_names_is_read_under_either():
    model = nn.Module()
    model.first = model.second = nn.Linear(IN, IN)
    graph_module = traced(lambda m, x: F.linear(x, m.second.weight), model)
    run_passes(graph_module, [remove_dead])
    assert graph_module.first.weight is graph_module.second.weight
    assert dict(graph_module.first.named_parameters()).keys() == {"weight"}


def test_what_the_graph_inside_a_graph_reads_stays():
    inner = traced(lambda m, x: F.linear(x, m.weight), layer())
    outer = traced(lambda m, x: m.inner(x), nn.ModuleDict({"inner": inner}))
    run_passes(outer, [remove_dead])
    assert names(outer) == ["inner.weight"]


def test_nothing_dead_is_nothing_done():
    graph_module = traced(lambda m, x: F.linear(x, m.weight), layer())
    run_passes(graph_module, [remove_dead])
    before = str(graph_module.graph)
    (step,) = run_passes(graph_module, [remove_dead])
    assert step.skipped == "nothing is dead"
    assert str(graph_module.graph) == before
    assert names(graph_module) == ["weight"]


def test_what_has_an_effect_is_not_dead():
    graph_module = traced(lambda m, x: (torch.ops.aten.mul_.Tensor(x, 2), x)[1], nn.Module())
    run_passes(graph_module, [remove_dead])
    x = torch.ones(2)
    assert graph_module(x).tolist() == [2, 2]
