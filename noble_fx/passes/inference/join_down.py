"""Make the base product and the branch's first one a single product, for inference."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from noble_fx.ops.operands import Operands
from noble_fx.passes.build import Build
from noble_fx.passes.example import Example, branch_operands
from noble_fx.passes.history import Skip
from noble_fx.passes.match import ModelGraph
from noble_fx.passes.rule import Answer, rule
from noble_fx.schema import JOINED_DOWN, LINEAR

STORED_TWICE = "another product reads the same matrix, which would be stored twice"


_EXAMPLE = Example(
    before=lambda m, x: LINEAR(x, m.weight, m.bias, *branch_operands(m.noble)),
    after=lambda m, x: JOINED_DOWN(x, m.joined_weight, m.joined_bias, *branch_operands(m.noble)[2:]),
    truth=lambda m, x: F.linear(x, m.weight, m.bias) + m.noble(x),
)


@rule(LINEAR, example=_EXAMPLE)
def join_down(build: Build, node: fx.Node, graph: ModelGraph) -> Answer:
    """linear(x, W, b, D, d, U, σ)  ->  joined_down(x, [W; D], [b; d], U, σ), where W and D are read here alone"""
    operands: Operands[Any] = Operands.of_node(node)
    (site,) = operands.sites
    tensors = graph.constants(site.weight, site.bias, site.down, site.down_bias)
    if isinstance(tensors, Skip):
        return tensors
    if not graph.sole_reader(site.weight, node) or not graph.sole_reader(site.down, node):
        return Skip(STORED_TWICE)
    w, b, d, c = tensors
    if w.dtype != d.dtype:
        return Skip(f"W is {w.dtype} and D {d.dtype}")
    weight, bias = build.constant("joined_weight", torch.cat([w, d]), beside=site.weight), None
    if b is not None or c is not None:
        both = torch.cat([_or_zeros(b, w), _or_zeros(c, d)])
        bias = build.constant("joined_bias", both, beside=site.weight)
    return build.call(JOINED_DOWN, operands.x, weight, bias, site.up, list(site.act), operands.key)


def _or_zeros(bias: Tensor | None, matrix: Tensor) -> Tensor:
    return matrix.new_zeros(len(matrix)) if bias is None else bias
