"""Take the place of a branch around a block out again, where there is none."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from noble_fx.layers.block import add_to_block
from noble_fx.passes.build import Build
from noble_fx.passes.example import IN, Example
from noble_fx.passes.history import Skip
from noble_fx.passes.match import ModelGraph
from noble_fx.passes.rule import Answer, rule
from noble_fx.schema import BLOCK_BRANCH

aten = torch.ops.aten
SUMS = (operator.add, aten.add.Tensor, add_to_block)
_CASTS = (aten.to.dtype, aten._to_copy.default)

_EXAMPLE = Example(
    before=lambda m, x: operator.add(torch.cos(x), BLOCK_BRANCH(x, "block")),
    after=lambda m, x: torch.cos(x),
    inputs=((5, IN),),
)


def _fills_a_place(node: fx.Node) -> bool:
    added: Any = node.args[1] if node.target in SUMS and len(node.args) == 2 else None
    while isinstance(added, fx.Node) and added.target in _CASTS:
        added = added.args[0]
    return isinstance(added, fx.Node) and added.target is BLOCK_BRANCH


@rule(where=_fills_a_place, example=_EXAMPLE)
def drop_block_place(build: Build, node: fx.Node, graph: ModelGraph) -> Answer:
    """y + noble_fx::block_branch(x, block)  ->  y"""
    y = node.args[0]
    return y if isinstance(y, fx.Node) else Skip("a sum with a number")
