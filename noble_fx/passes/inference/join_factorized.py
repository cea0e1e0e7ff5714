"""Make a site whose W is A B one bottleneck, for inference: two products, one before σ and one after.

z = x Bᵀ,  h = x Dᵀ + d     =  x [B; D]ᵀ + [0; d]
z Aᵀ + b + σ(h) Uᵀ          =  [z σ(h)] [A U]ᵀ + b
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.nn import functional as F

from noble_fx.passes.build import Build
from noble_fx.passes.example import RANK, Example, branch_operands, factorized_layer
from noble_fx.passes.history import Skip
from noble_fx.passes.inference.join_down import STORED_TWICE
from noble_fx.passes.match import ModelGraph
from noble_fx.passes.rule import Answer, rule
from noble_fx.schema import FACTORIZED, JOINED_FACTORIZED


def _joined(m: Any, x: Any) -> Any:
    _, _, _, act, key = branch_operands(m.noble)
    bias = m.base.joined_bias if m.noble.down_bias is not None else None
    return JOINED_FACTORIZED(x, m.base.joined_down, bias, m.base.joined_up, m.bias, RANK + 1, act, key)


_EXAMPLE = Example(
    before=lambda m, x: FACTORIZED(x, m.base.down, m.base.up, m.bias, *branch_operands(m.noble)),
    after=_joined,
    truth=lambda m, x: F.linear(F.linear(x, m.base.down), m.base.up, m.bias) + m.noble(x),
    model=factorized_layer,
)


@rule(FACTORIZED, example=_EXAMPLE)
def join_factorized(build: Build, node: fx.Node, graph: ModelGraph) -> Answer:
    """factorized_linear(x, B, A, b, D, d, U, σ)  ->  joined_factorized(x, [B; D], [0; d], [A U], b, σ)"""
    x, base_down, base_up, bias, down, down_bias, up, act, key = node.args
    matrices = graph.constants(base_down, base_up, down, down_bias, up)
    if isinstance(matrices, Skip):
        return matrices
    if not all(graph.sole_reader(read, node) for read in (base_down, base_up, down, up)):
        return Skip(STORED_TWICE)
    b, a, d, shift, u = matrices
    if len({b.dtype, a.dtype, d.dtype, u.dtype}) > 1:
        return Skip("its matrices are of several dtypes")
    first = build.constant("joined_down", torch.cat([b, d]), beside=base_down)
    last = build.constant("joined_up", torch.cat([a, u], dim=1), beside=base_up)
    if shift is not None:
        shift = build.constant("joined_bias", torch.cat([b.new_zeros(len(b)), shift]), beside=base_down)
    return build.call(JOINED_FACTORIZED, x, first, shift, last, bias, len(b), list(act), key)  # type: ignore[arg-type]
