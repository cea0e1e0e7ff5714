"""Where there is no branch, nothing is left of its place."""

import operator

import pytest
import torch

from noble_fx.layers.block import add_to_block
from noble_fx.passes.check import check_rewrite
from noble_fx.passes.example import IN, Example, around, traced
from noble_fx.passes.insert.drop_block_place import drop_block_place
from noble_fx.passes.rule import run_passes
from noble_fx.schema import BLOCK_BRANCH

aten = torch.ops.aten


@pytest.mark.parametrize("add", [operator.add, aten.add.Tensor])
def test_rewrite(add):
    example = Example(
        before=lambda m, x: add(torch.cos(x), BLOCK_BRANCH(x, "block")),
        after=lambda m, x: torch.cos(x),
        inputs=((5, IN),),
    )
    check_rewrite(drop_block_place, example)


def test_through_a_cast():
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    place = graph.call_function(aten.to.dtype, (graph.call_function(BLOCK_BRANCH, (x, "block")), torch.float32))
    graph.output(graph.call_function(add_to_block, (x, place)))
    graph_module = torch.fx.GraphModule(torch.nn.Module(), graph)
    run_passes(graph_module, [drop_block_place])
    assert [node.op for node in graph.nodes] == ["placeholder", "output"]


def test_other_sums_are_not_looked_at():
    assert not run_passes(traced(lambda m, x: x + 1 + m.block.noble(x), around()), [drop_block_place])
