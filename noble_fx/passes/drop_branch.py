"""The way back: a site without its branch, as it was in the base model."""

from __future__ import annotations

import operator
from typing import Any

from torch import fx
from torch.nn import functional as F

from noble_fx.passes.rule import Answer, Build, Target, rule
from noble_fx.program import Skip
from noble_fx.schema import LINEAR


@rule(LINEAR, operator.add)
def drop_branch(build: Build, node: fx.Node, target: Target) -> Answer:
    """noble_fx::linear(x, w, b, …)  ->  linear(x, w, b), and linear(x, w, b) + noble(x)  ->  linear(x, w, b)"""
    if node.target is LINEAR:
        x, weight, bias, *_ = node.args
        return build.call(F.linear, x, weight, _without_up_bias(bias))
    linear, call = node.args
    if target.branch(call) is None or not isinstance(linear, fx.Node):
        return Skip("not a branch")
    return linear


def _without_up_bias(bias: Any) -> Any:
    """The layer's own bias, where a folded branch has added its one."""
    if _is_up_bias(bias):
        return None
    added = isinstance(bias, fx.Node) and bias.target is operator.add and _is_up_bias(bias.args[1])
    return bias.args[0] if added else bias


def _is_up_bias(node: Any) -> bool:
    if isinstance(node, fx.Node) and node.target is operator.getitem:  # those of some rows
        node = node.args[0]
    return isinstance(node, fx.Node) and node.op == "get_attr" and str(node.target).endswith(".up_bias")
