"""A branch without an activation is a linear map, and two linear maps that are added are one."""

from __future__ import annotations

from typing import Any

from torch import fx
from torch.nn import functional as F

from noble_fx.branches.affine import affine_map, is_affine
from noble_fx.branches.keys import template
from noble_fx.branches.trace import activation_functions
from noble_fx.ops.operands import Operands
from noble_fx.passes.build import Build
from noble_fx.passes.example import Example, branch_operands, layer
from noble_fx.passes.history import Skip
from noble_fx.passes.inference.join_down import STORED_TWICE
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
    """linear(x, W, b, D, d, U, h Mᵀ + m)  ->  linear(x, W + U M D, b + U (M d + m))"""
    operands: Operands[Any] = Operands.of_node(node)
    (site,) = operands.sites
    if not is_affine(template(operands.key)):
        return Skip("its branch is not linear")
    of_act = graph.constants(*site.act)
    tensors = graph.constants(site.weight, site.bias, site.down, site.down_bias, site.up)
    if isinstance(tensors, Skip):
        return tensors
    if isinstance(of_act, Skip):
        return of_act
    if not graph.sole_reader(site.weight, node):
        return Skip(STORED_TWICE)
    dtype = tensors[0].dtype
    w, b, d, c, u = list[Any](None if tensor is None else tensor.double() for tensor in tensors)
    sigma, values = activation_functions(operands.key).forward, [tensor.double() for tensor in of_act]
    mixed, shift = affine_map(lambda h: sigma(h, *values), d, len(d))
    weight, bias = build.constant("merged_weight", (w + u @ mixed @ d).to(dtype), beside=site.weight), site.bias
    shift = shift if c is None else shift + mixed @ c
    if c is not None or shift.any():
        moved = u @ shift if b is None else b + u @ shift
        bias = build.constant("merged_bias", moved.to(dtype), beside=site.weight)
    return build.call(F.linear, operands.x, weight, bias)
