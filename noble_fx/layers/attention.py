"""`nn.MultiheadAttention` with branches on its projections.

Its own forward hands the weights to one function that reads them directly, so no layer inside can be swapped. The
class here computes the same attention, with each projection followed by its branch:

    q, k, v = x W_inᵀ + noble(x)        y = attention(q, k, v) W_outᵀ + noble(·)
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from noble_fx.branches.base import Branch
from noble_fx.errors import Refusal
from noble_fx.layers.base import Augmented, LayerRow

PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
EAGER = "a part of nn.MultiheadAttention"


class WithProjections(Augmented):
    """An `nn.MultiheadAttention` whose `noble` holds the branches of its in-projections by parameter name.

    Arguments, results, masks and dropout are those of the class; the fused inference kernel is used only inside
    `noble_fx.disabled`, because it reads the weights past every branch.
    """

    modules: Any
    out_proj: Any
    embed_dim: int
    num_heads: int
    head_dim: int
    batch_first: bool
    dropout: float
    training: bool
    add_zero_attn: bool
    in_proj_bias: Tensor | None
    bias_k: Tensor | None
    bias_v: Tensor | None
    _qkv_same_embed_dim: bool

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        branches = (m for m in self.modules() if isinstance(m, Branch))
        if not any(branch.enabled for branch in branches):
            return super(Augmented, self).forward(  # type: ignore[misc]
                query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
            )
        if is_causal and attn_mask is None:
            raise RuntimeError("Need attn_mask if specifying the is_causal hint.")
        batched = query.dim() == 3
        if batched and not self.batch_first:
            query, key, value = (t.transpose(0, 1) for t in (query, key, value))
        elif not batched:
            query, key, value = (t.unsqueeze(0) for t in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        q, k, v = self._split_heads(query, key, value)
        hint = is_causal and key_padding_mask is None and not need_weights
        mask = None if hint else _mask(q, k, attn_mask, key_padding_mask)
        dropout = self.dropout if self.training else 0.0
        if need_weights:
            scores = (q * math.sqrt(1.0 / self.head_dim)) @ k.transpose(-2, -1)
            weights = torch.softmax(scores if mask is None else scores + mask, dim=-1)
            weights = F.dropout(weights, dropout) if dropout else weights
            y = weights @ v
        else:
            y, weights = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=hint), None
        y = self.out_proj(y.transpose(1, 2).flatten(2))
        if weights is not None:
            weights = weights.mean(dim=1) if average_attn_weights else weights
        if not batched:
            return y.squeeze(0), None if weights is None else weights.squeeze(0)
        return (y if self.batch_first else y.transpose(0, 1)), weights

    def _split_heads(self, *inputs: Tensor) -> list[Tensor]:
        """The projected query, key and value, [B, H, T, C/H] each, with the extra keys that the class may add."""
        q, k, v = self._projected(*inputs)
        if self.bias_k is not None and self.bias_v is not None:
            batch = k.shape[0]
            k = torch.cat([k, self.bias_k.expand(batch, -1, -1)], dim=1)
            v = torch.cat([v, self.bias_v.expand(batch, -1, -1)], dim=1)
        if self.add_zero_attn:
            k, v = (F.pad(t, (0, 0, 0, 1)) for t in (k, v))
        return [t.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2) for t in (q, k, v)]

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        width, bias = self.embed_dim, self.in_proj_bias
        if not self._qkv_same_embed_dim:
            biases: Any = (None,) * 3 if bias is None else bias.chunk(3)
            names = ("q_proj_weight", "k_proj_weight", "v_proj_weight")
            return tuple(map(self.project, (query, key, value), names, biases))
        if query is key and key is value:
            return self.project(query, "in_proj_weight", bias).chunk(3, dim=-1)
        rows = [slice(i * width, (i + 1) * width) for i in range(3)]
        return tuple(
            self.project(x, "in_proj_weight", None if bias is None else bias[part], part)
            for x, part in zip((query, key, value), rows, strict=True)
        )

    def project(self, x: Tensor, name: str, bias: Tensor | None, rows: slice | None = None) -> Tensor:
        """x by the weight `name`, or by some rows of it, [.., N], with its branch."""
        weight = getattr(self, name)
        y = F.linear(x, weight if rows is None else weight[rows], bias)
        held: Any = self.noble
        return y + held[name](x, rows) if name in held and held[name].enabled else y


def _mask(q: Tensor, k: Tensor, attn_mask: Tensor | None, key_padding_mask: Tensor | None) -> Tensor | None:
    """Both masks as one to add to the scores, [B, H or 1, T, S]; keys that the class added at the end stay visible."""
    batch, heads, _, length = (*q.shape[:3], k.shape[2])
    total: Tensor | None = None
    for mask, padding in ((attn_mask, False), (key_padding_mask, True)):
        if mask is None:
            continue
        if mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill_(mask, float("-inf"))
        mask = F.pad(mask, (0, length - mask.shape[-1]))
        if padding:
            mask = mask.view(batch, 1, 1, length)
        elif mask.dim() == 3:
            mask = mask.view(batch, heads, -1, length)
        total = mask if total is None else total + mask
    return total


ROWS = (
    LayerRow(
        nn.MultiheadAttention,
        shape=lambda layer: None,  # its projections are listed, each on its own
        mixin=WithProjections,
        title=lambda layer: "MultiheadAttention",
        eager=lambda layer: Refusal(EAGER),
        beside=False,
        parameters=PROJECTIONS,
        bias="in_proj_bias",
    ),
)
