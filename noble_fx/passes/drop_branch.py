"""The way back: a site without its branch, as it was in the base model."""

from __future__ import annotations

import operator
from typing import Any, cast

from torch import fx
from torch.nn import functional as F

from noble_fx.passes.rule import Answer, Build, Target, rule
from noble_fx.program import Skip
from noble_fx.schema import LINEAR, LINEAR_GROUP


@rule(LINEAR, LINEAR_GROUP, operator.add)
def drop_branch(build: Build, node: fx.Node, target: Target) -> Answer:
    """noble_fx::linear(x, w, b, …)  ->  linear(x, w, b), each of a linear_group, and linear(x, w, b) + noble(x)"""
    if node.target is LINEAR:
        return build.call(F.linear, *node.args[:3])
    if node.target is LINEAR_GROUP:
        x, weights, biases, *_ = cast("tuple[Any, ...]", node.args)
        plain = list(zip(weights, biases or [None] * len(weights), strict=True))
        return {user: build.call(F.linear, x, *plain[user.args[1]]) for user in list(node.users)}  # type: ignore[index]
    linear, call = node.args
    if target.branch(call) is None or not isinstance(linear, fx.Node):
        return Skip("not a branch")
    return linear
