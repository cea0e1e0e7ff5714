"""Make the base product and the branch's first one a single product, for inference."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from noble_fx.passes.history import Skip
from noble_fx.passes.rule import Answer, Build, Target, rule
from noble_fx.schema import JOINED_DOWN, LINEAR

STORED_TWICE = "another product reads the same matrix, which would be stored twice"


@rule(LINEAR)
def join_down(build: Build, node: fx.Node, target: Target) -> Answer:
    """linear(x, W, b, D, d, U, σ)  ->  joined_down(x, [W; D], [b; d], U, σ), where W and D are read here alone"""
    x, weight, bias, down, down_bias, up, act, key = node.args
    found = target.constants(weight, bias, down, down_bias)
    if isinstance(found, Skip):
        return found
    if not target.sole_reader(weight, node) or not target.sole_reader(down, node):
        return Skip(STORED_TWICE)
    w, b, d, c = found
    if w.dtype != d.dtype:
        return Skip(f"W is {w.dtype} and D {d.dtype}")
    joined = build.constant("joined_weight", torch.cat([w, d]), beside=weight)
    joined_bias = None
    if b is not None or c is not None:
        both = torch.cat([_or_zeros(b, w), _or_zeros(c, d)])
        joined_bias = build.constant("joined_bias", both, beside=weight)
    return build.call(JOINED_DOWN, x, joined, joined_bias, up, act, key)


def _or_zeros(bias: Tensor | None, matrix: Tensor) -> Tensor:
    return matrix.new_zeros(len(matrix)) if bias is None else bias
