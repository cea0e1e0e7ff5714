"""The way back: a site without its branch, as it was in the base model."""

from __future__ import annotations

import operator

from torch import fx
from torch.nn import functional as F

from noble_fx.passes.rule import Answer, Build, Target, rule
from noble_fx.program import Skip
from noble_fx.schema import LINEAR


@rule(LINEAR, operator.add)
def drop_branch(build: Build, node: fx.Node, target: Target) -> Answer:
    """noble_fx::linear(x, w, b, …)  ->  linear(x, w, b), and linear(x, w, b) + noble(x)  ->  linear(x, w, b)"""
    if node.target is LINEAR:
        return build.call(F.linear, *node.args[:3])
    linear, call = node.args
    if target.branch(call) is None or not isinstance(linear, fx.Node):
        return Skip("not a branch")
    return linear
