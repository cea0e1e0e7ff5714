"""Of changes of shape in a row the last is left, and none where the shape is the first one's."""

import pytest
import torch
from torch import nn
from torch.export import Dim, export

from noble_fx.passes.check import check_rewrite
from noble_fx.passes.example import Example, traced
from noble_fx.passes.inference.merge_view import VIEWS, is_view, merge_view
from noble_fx.passes.rule import run_passes

aten = torch.ops.aten
SHAPE = ((6, 4),)

EXAMPLES = {
    "own": merge_view.example,
    "back to its shape": Example(
        lambda m, x: aten.view.default(aten.view.default(x, [24]), [6, 4]) + 0, lambda m, x: x + 0, inputs=SHAPE
    ),
    "the same shape": Example(lambda m, x: aten.reshape.default(x, [6, 4]) + 0, lambda m, x: x + 0, inputs=SHAPE),
    "three": Example(
        lambda m, x: aten.view.default(aten._unsafe_view.default(aten.view.default(x, [24]), [2, 12]), [3, 8]),
        lambda m, x: aten.reshape.default(x, [3, 8]),
        inputs=SHAPE,
    ),
    "of what was moved": Example(
        lambda m, x: aten.reshape.default(aten.reshape.default(aten.t.default(x), [24]), [2, 12]),
        lambda m, x: aten.reshape.default(aten.t.default(x), [2, 12]),
        inputs=SHAPE,
    ),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_rewrite(name):
    check_rewrite(merge_view, EXAMPLES[name])


def test_a_view_of_something_else_stays():
    graph_module = traced(lambda m, x: aten.view.default(aten.relu.default(x), [24]), nn.Module())
    (step,) = run_passes(graph_module, [merge_view])
    assert step.skipped == "a view of what is no view"


def test_symbolic_sizes_are_compared_by_their_expressions():
    class Back(nn.Module):
        def forward(self, x):
            return x.reshape(-1).reshape(x.shape[0], 4) + x.reshape(-1, 4)

    program = export(Back(), (torch.randn(6, 4),), dynamic_shapes=({0: Dim.AUTO},), strict=False)
    graph_module = program.run_decompositions({}).graph_module
    x = torch.randn(5, 4)
    run_passes(graph_module, [merge_view])
    assert not [node for node in graph_module.graph.nodes if is_view(node)]
    torch.testing.assert_close(graph_module(x)[0], x + x)


def test_what_is_a_view():
    graph_module = traced(lambda m, x: aten.view.default(x, [24]).relu(), nn.Module())
    assert [is_view(node) for node in graph_module.graph.nodes] == [False, True, False, False]
    assert not is_view(3)
    assert len(VIEWS) == 3
