"""Make a linear map and its branch one operator."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from torch import fx
from torch.nn import functional as F

from noble_fx.branches.noble import NobleBranch
from noble_fx.passes.build import Build
from noble_fx.passes.example import Example, branch_operands
from noble_fx.passes.history import Skip
from noble_fx.passes.match import ModelGraph
from noble_fx.passes.rule import Answer, rule
from noble_fx.schema import LINEAR

_EXAMPLE = Example(
    before=lambda m, x: F.linear(x, m.weight, m.bias) + m.noble(x),
    after=lambda m, x: LINEAR(x, m.weight, m.bias, *branch_operands(m.noble)),
)


@rule(operator.add, example=_EXAMPLE)
def fuse_branch(build: Build, node: fx.Node, graph: ModelGraph) -> Answer:
    """linear(x, w, b) + noble(x)  ->  noble_fx::linear(x, w, b, D, d, U, σ's tensors, σ's key)"""
    linear, call = node.args
    branch = graph.branch(call)
    if branch is None or not isinstance(linear, fx.Node) or linear.target is not F.linear:
        return Skip("not a branch")
    if branch.unfused:
        return Skip(branch.unfused)
    path = str(call.target)  # type: ignore[union-attr]
    rows = [arg for arg in call.args[1:] if arg is not None]  # type: ignore[union-attr]
    x, weight, bias = linear.args
    return fused(build, branch, path, x, weight, bias, rows)


def fused(build: Build, branch: NobleBranch, path: str, x: Any, weight: Any, bias: Any, rows: Sequence[Any]) -> fx.Node:
    """The operator's node, for the branch at `path` and those `rows` of N that the weight has ([] for all)."""

    def part(name: str) -> fx.Node:
        whole = build.attribute(f"{path}.{name}")
        return build.call(operator.getitem, whole, *rows) if rows else whole

    names = [f"{path}.act.{n}" for n, _ in [*branch.act.named_parameters(), *branch.act.named_buffers()]]
    if branch.up_bias is not None:
        bias = part("up_bias") if bias is None else build.call(operator.add, bias, part("up_bias"))
    down_bias = build.attribute(f"{path}.down_bias") if branch.down_bias is not None else None
    act = [build.attribute(name) for name in names]
    return build.call(LINEAR, x, weight, bias, build.attribute(f"{path}.down"), down_bias, part("up"), act, branch.key)
