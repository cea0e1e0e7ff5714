"""The way back: a site without its branch, as it was in the base model."""

from __future__ import annotations

import operator
from typing import Any

from torch import fx
from torch.nn import functional as F

from noble_fx.ops.operands import Operands
from noble_fx.passes.build import Build
from noble_fx.passes.example import Example, branch_operands
from noble_fx.passes.history import Skip
from noble_fx.passes.insert.drop_block_place import SUMS
from noble_fx.passes.match import ModelGraph
from noble_fx.passes.rule import Answer, rule
from noble_fx.schema import LINEAR, LINEAR_GROUP

_EXAMPLE = Example(
    before=lambda m, x: LINEAR(x, m.weight, m.bias, *branch_operands(m.noble)),
    after=lambda m, x: F.linear(x, m.weight, m.bias),
    truth=lambda m, x: F.linear(x, m.weight, m.bias),
)


@rule(LINEAR, LINEAR_GROUP, *SUMS, example=_EXAMPLE)
def drop_branch(build: Build, node: fx.Node, graph: ModelGraph) -> Answer:
    """noble_fx::linear(x, w, b, …)  ->  linear(x, w, b), each of a linear_group, and linear(x, w, b) + noble(x)"""
    if node.target in SUMS:
        linear, call = node.args[:2]
        return linear if isinstance(linear, fx.Node) and graph.branch(call) is not None else Skip("not a branch")
    operands: Operands[Any] = Operands.of_node(node)

    def plain(i: int) -> fx.Node:
        site = operands.sites[i]
        return build.call(F.linear, operands.x, site.weight, _without_branch(site.bias, graph))

    if node.target is LINEAR:
        return plain(0)
    return {result: plain(int(result.args[1])) for result in list(node.users)}  # type: ignore[arg-type]


def _without_branch(bias: Any, graph: ModelGraph) -> Any:
    """The layer's own bias, where a folded branch has added its one."""
    if _is_of_branch(bias, graph):
        return None
    added = isinstance(bias, fx.Node) and bias.target is operator.add and _is_of_branch(bias.args[1], graph)
    return bias.args[0] if added else bias


def _is_of_branch(bias: Any, graph: ModelGraph) -> bool:
    if isinstance(bias, fx.Node) and bias.target is operator.getitem:  # that of some rows
        bias = bias.args[0]
    return graph.owning_branch(bias) is not None
