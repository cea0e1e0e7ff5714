"""Make a linear map and its branch one operator."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from torch import fx
from torch.nn import functional as F

from noble_fx.branches.base import Branch, FusedForm
from noble_fx.passes.history import Skip
from noble_fx.passes.rule import Answer, Build, Target, rule
from noble_fx.schema import LINEAR


@rule(operator.add)
def fuse_branch(build: Build, node: fx.Node, target: Target) -> Answer:
    """linear(x, w, b) + noble(x)  ->  noble_fx::linear(x, w, b, D, d, U, σ's tensors, σ's key)"""
    linear, call = node.args
    branch = target.branch(call)
    if branch is None or not isinstance(linear, fx.Node) or linear.target is not F.linear:
        return Skip("not a branch")
    if branch.unfused:
        return Skip(branch.unfused)
    path = str(call.target)  # type: ignore[union-attr]
    rows = [arg for arg in call.args[1:] if arg is not None]  # type: ignore[union-attr]
    x, weight, bias = linear.args
    return fused(build, branch, path, x, weight, bias, rows)


def fused(build: Build, branch: Branch, path: str, x: Any, weight: Any, bias: Any, rows: Sequence[Any]) -> fx.Node:
    """The operator's node, for the branch at `path` and those `rows` of N that the weight has ([] for all)."""

    def part(name: str) -> fx.Node:
        whole = build.attribute(f"{path}.{name}")
        return build.call(operator.getitem, whole, *rows) if rows else whole

    form = branch.fused_form()
    assert isinstance(form, FusedForm)
    if form.up_bias is not None:
        bias = part(form.up_bias) if bias is None else build.call(operator.add, bias, part(form.up_bias))
    down_bias = build.attribute(f"{path}.{form.down_bias}") if form.down_bias is not None else None
    act = [build.attribute(f"{path}.{name}") for name in form.act]
    return build.call(
        LINEAR, x, weight, bias, build.attribute(f"{path}.{form.down}"), down_bias, part(form.up), act, form.key
    )
