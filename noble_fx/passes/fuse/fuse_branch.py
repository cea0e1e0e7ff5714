"""Make a linear map and its branch one operator."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch.nn import functional as F

from noble_fx.branches.base import FusedForm
from noble_fx.branches.bound import names_of
from noble_fx.errors import Refusal
from noble_fx.ops.operands import Operands
from noble_fx.passes.build import Build
from noble_fx.passes.example import Example, branch_operands
from noble_fx.passes.history import Skip
from noble_fx.passes.match import ModelGraph
from noble_fx.passes.rule import Answer, rule
from noble_fx.schema import LINEAR
from noble_fx.sites.views import bound

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
    form = branch.fused_form()
    if isinstance(form, Refusal):
        return Skip(form.reason)
    _, *rows = call.args  # type: ignore[union-attr]
    layer = bound(linear)
    path = str(call.target)  # type: ignore[union-attr]
    return fused(build, form, path, layer["input"], layer["weight"], layer["bias"], rows)


def fused(build: Build, form: FusedForm, path: str, x: Any, weight: Any, bias: Any, rows: Sequence[Any]) -> fx.Node:
    """The operator's node, for the branch at `path` and those `rows` of N that the weight has ([] for all)."""

    def read(name: str) -> fx.Node:
        return build.attribute(f"{path}.{name}")

    def part(name: str) -> fx.Node:
        return build.call(operator.getitem, read(name), *rows) if rows else read(name)

    downs, ups = [read(name) for name in names_of(form.down)], [part(name) for name in names_of(form.up)]
    down = downs[0] if len(downs) == 1 else build.call(torch.cat, downs)
    up = ups[0] if len(ups) == 1 else build.call(torch.cat, ups, 1)
    down_bias = read(form.down_bias) if form.down_bias is not None else None
    if down_bias is not None and len(downs) > 1:
        down_bias = build.call(F.pad, down_bias, (0, sum(form.ranks[1:])))
    if form.up_bias is not None:
        bias = part(form.up_bias) if bias is None else build.call(operator.add, bias, part(form.up_bias))
    operands = Operands.of_linear(x, weight, bias, down, down_bias, up, map(read, form.act), form.key)
    return build.call(LINEAR, *operands.linear_args())
