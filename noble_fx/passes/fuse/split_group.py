"""Take a group of sites apart again: for exports, and for passes that look at one site at a time."""

from __future__ import annotations

from typing import Any

from torch import fx

from noble_fx.ops.operands import Operands
from noble_fx.passes.build import Build
from noble_fx.passes.fuse.share_input import EXAMPLE
from noble_fx.passes.match import ModelGraph
from noble_fx.passes.rule import Answer, rule
from noble_fx.schema import LINEAR, LINEAR_GROUP


@rule(LINEAR_GROUP, example=EXAMPLE.reversed())
def split_group(build: Build, node: fx.Node, graph: ModelGraph) -> Answer:
    """getitem(linear_group(x, [w…], …), i)  ->  noble_fx::linear(x, wᵢ, …)"""
    sites: list[Operands[Any]] = Operands.of_node(node).split()
    return {result: build.call(LINEAR, *sites[int(result.args[1])].linear_args()) for result in list(node.users)}  # type: ignore[arg-type]
