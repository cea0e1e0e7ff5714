"""A branch without an activation is a linear map, and two linear maps that are added are one."""

from __future__ import annotations

from typing import Any

from torch import fx, nn
from torch.nn import functional as F

from noble_fx.branches.keys import template
from noble_fx.passes.history import Skip
from noble_fx.passes.rule import Answer, Build, Target, rule
from noble_fx.schema import LINEAR


@rule(LINEAR)
def merge_branch(build: Build, node: fx.Node, target: Target) -> Answer:
    """linear(x, W, b, D, d, U, identity)  ->  linear(x, W + U D, b + U d)"""
    x, weight, bias, down, down_bias, up, _, key = node.args
    if type(template(str(key))) is not nn.Identity:
        return Skip("its branch is not linear")
    found = target.constants(weight, bias, down, down_bias, up)
    if isinstance(found, Skip):
        return found
    if not target.sole_reader(weight, node):
        return Skip("another product reads the same matrix, which would be stored twice")
    w, b, d, c, u = _wide(found)
    merged = build.constant("merged_weight", (w + u @ d).to(found[0].dtype), beside=weight)
    if c is not None:
        moved = u @ c if b is None else b + u @ c
        bias = build.constant("merged_bias", moved.to(found[0].dtype), beside=weight)
    return build.call(F.linear, x, merged, bias)


def _wide(values: list[Any]) -> list[Any]:
    return [None if value is None else value.double() for value in values]
