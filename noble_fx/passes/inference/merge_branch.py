"""A branch without an activation is a linear map, and two linear maps that are added are one."""

from __future__ import annotations

from typing import Any

from torch import fx, nn
from torch.nn import functional as F

from noble_fx.branches.keys import template
from noble_fx.passes.build import Build
from noble_fx.passes.example import Example, branch_operands, layer
from noble_fx.passes.history import Skip
from noble_fx.passes.match import ModelGraph
from noble_fx.passes.rule import Answer, rule
from noble_fx.schema import LINEAR

_EXAMPLE = Example(
    before=lambda m, x: LINEAR(x, m.weight, m.bias, *branch_operands(m.noble)),
    after=lambda m, x: F.linear(x, m.merged_weight, m.bias),
    truth=lambda m, x: F.linear(x, m.weight, m.bias) + m.noble(x),
    model=lambda: layer(act="identity"),
)


@rule(LINEAR, example=_EXAMPLE)
def merge_branch(build: Build, node: fx.Node, graph: ModelGraph) -> Answer:
    """linear(x, W, b, D, d, U, identity)  ->  linear(x, W + U D, b + U d)"""
    x, weight, bias, down, down_bias, up, _, key = node.args
    if type(template(str(key))) is not nn.Identity:
        return Skip("its branch is not linear")
    found = graph.constants(weight, bias, down, down_bias, up)
    if isinstance(found, Skip):
        return found
    if not graph.sole_reader(weight, node):
        return Skip("another product reads the same matrix, which would be stored twice")
    w, b, d, c, u = _wide(found)
    merged = build.constant("merged_weight", (w + u @ d).to(found[0].dtype), beside=weight)
    if c is not None:
        moved = u @ c if b is None else b + u @ c
        bias = build.constant("merged_bias", moved.to(found[0].dtype), beside=weight)
    return build.call(F.linear, x, merged, bias)


def _wide(values: list[Any]) -> list[Any]:
    return [None if value is None else value.double() for value in values]
