"""Put the branch around a block where a captured graph shows its place."""

from __future__ import annotations

from torch import fx

from noble_fx.ops import block_branch  # noqa: F401 - the operator
from noble_fx.passes.build import Build
from noble_fx.passes.example import IN, Example, around
from noble_fx.passes.history import Skip
from noble_fx.passes.match import ModelGraph
from noble_fx.passes.rule import Answer, rule
from noble_fx.schema import BLOCK_BRANCH

_EXAMPLE = Example(
    before=lambda m, x: BLOCK_BRANCH(x, "block"),
    after=lambda m, x: m.block.noble(x),
    truth=lambda m, x: m.block.noble(x),
    model=around,
    inputs=((5, IN),),
)


@rule(BLOCK_BRANCH, example=_EXAMPLE)
def insert_block_branch(build: Build, node: fx.Node, graph: ModelGraph) -> Answer:
    """noble_fx::block_branch(x, block)  ->  noble(x)"""
    x, block = node.args
    path = graph.branch_around(str(block))
    return build.module(path, x) if path else Skip("not selected")
