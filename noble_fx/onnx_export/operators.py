"""Operators of captured models that torch's exporter has no ONNX for.

grouped product     x [S, K] sorted by expert, W [E, K, N], offsets [E]   ->   E slices, E products, one Concat
attention in 3 dimensions   attention(q [B, T, C], k, v)   ->   attention(q [B, 1, T, C], …)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from noble_fx.sites.products import GROUPED


def translations() -> dict[Any, Callable[..., Any]]:
    """By operator, the function that writes its ONNX; operators of libraries that are not loaded are not there."""
    by_operator = {}
    for name in GROUPED:
        library, _, operator = name.partition("::")
        packet = getattr(getattr(torch.ops, library), operator, None)
        if packet is not None:
            by_operator[packet.default] = _grouped_product
    return by_operator


def _grouped_product(x: Any, weight: Any, offs: Any = None, bias: Any = None, out_dtype: int | None = None) -> Any:
    from onnxscript import opset18

    op: Any = opset18
    if offs is None or bias is not None or out_dtype is not None or len(x.shape) != 2:
        raise NotImplementedError("a grouped product other than x [S, K], W [E, K, N], offsets [E]")
    offs = op.Cast(offs, to=7)  # int64
    axis = start = op.Constant(value_ints=[0])
    products = []
    for expert in range(weight.shape[0]):
        at = op.Constant(value_ints=[expert])
        end = op.Gather(offs, at)
        rows = op.Slice(x, start, end, axis)
        products.append(op.MatMul(rows, op.Squeeze(op.Gather(weight, at), axis)))
        start = end
    return op.Concat(*products, axis=0)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **settings: Any,
) -> Any:
    """Attention without heads, [B, T, C], as attention of one head; any other is left as it is."""
    if not query.ndim == key.ndim == value.ndim == 3:
        return NotImplemented
    if attn_mask is not None and attn_mask.ndim == 3:
        attn_mask = attn_mask.unsqueeze(1)
    q, k, v = query.unsqueeze(1), key.unsqueeze(1), value.unsqueeze(1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask, dropout_p, is_causal, **settings).squeeze(1)


# Decompositions to operators that the exporter knows.
REWRITTEN: dict[Any, Callable[..., Any]] = {torch.ops.aten.scaled_dot_product_attention.default: _attention}
