"""The operators for inference, as products of rows: what an exported graph is decomposed to.

    linear               y = rows Wᵀ + b      t = σ(rows Dᵀ + d)               y + t Uᵀ
    joined_down          [y h] = rows [W; D]ᵀ + [b; d], a product that reads x once      y + σ(h) Uᵀ
    factorized_linear    y = (rows Bᵀ) Aᵀ + b      t = σ(rows Dᵀ + d)       y + t Uᵀ
    joined_factorized    [z h] = rows [B; D]ᵀ + [0; d]      [z σ(h)] [A U]ᵀ + b, two products and no more
    joined_up            t = σ(rows Dᵀ + d)      [rows t] [W U]ᵀ + b, a product that writes y once

x [.., K] is seen as rows [rows, K], because a product of matrices with something added is one operator in ONNX (Gemm)
and one of stacked matrices is two. σ is computed in float32 or better, as in the branch itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from noble_fx.branches import trace
from noble_fx.ops.factorized import Factorized
from noble_fx.ops.linear_group import eager_linear_group
from noble_fx.schema import (
    FACTORIZED,
    JOINED_DOWN,
    JOINED_FACTORIZED,
    JOINED_UP,
    LINEAR,
    LINEAR_GROUP,
    library,
)


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    down: Tensor,
    down_bias: Tensor | None,
    up: Tensor,
    act: Sequence[Tensor],
    act_key: str,
) -> Tensor:
    """`noble_fx::linear`, x [.., K] -> y [.., N]."""
    rows = x.reshape(-1, x.shape[-1])
    t = trace.eager(act_key, list(act), F.linear(rows, down, down_bias))
    return torch.addmm(F.linear(rows, weight, bias), t, up.t()).reshape(*x.shape[:-1], up.shape[0])


def factorized(*arguments: Any) -> Tensor:
    """`noble_fx::factorized_linear`, x [.., K] -> y [.., N]."""
    of, act_key = Factorized.read(arguments)
    rows = of.x.reshape(-1, of.x.shape[-1])
    t = trace.eager(act_key, list(of.act), F.linear(rows, of.down, of.down_bias))
    y = F.linear(F.linear(rows, of.base_down), of.base_up, of.bias)
    return torch.addmm(y, t, of.up.t()).reshape(*of.x.shape[:-1], of.up.shape[0])


def joined_factorized(
    x: Tensor,
    down: Tensor,
    down_bias: Tensor | None,
    up: Tensor,
    bias: Tensor | None,
    rank: int,
    act: Sequence[Tensor],
    act_key: str,
) -> Tensor:
    """`noble_fx::joined_factorized`, down [B; D] [k + r, K], up [A U] [N, k + r], rank k: x [.., K] -> y [.., N]."""
    both = F.linear(x.reshape(-1, x.shape[-1]), down, down_bias)
    z, h = both.split([rank, down.shape[0] - rank], dim=-1)
    t = trace.eager(act_key, list(act), h)
    return F.linear(torch.cat([z, t], dim=-1), up, bias).reshape(*x.shape[:-1], up.shape[0])


def joined_down(
    x: Tensor, weight: Tensor, bias: Tensor | None, up: Tensor, act: Sequence[Tensor], act_key: str
) -> Tensor:
    """`noble_fx::joined_down`, weight [W; D] [N + r, K], bias [b; d]: x [.., K] -> y [.., N]."""
    y, h = F.linear(x.reshape(-1, x.shape[-1]), weight, bias).split(list(up.shape), dim=-1)
    t = trace.eager(act_key, list(act), h)
    return torch.addmm(y, t, up.t()).reshape(*x.shape[:-1], up.shape[0])


def joined_up(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    down: Tensor,
    down_bias: Tensor | None,
    act: Sequence[Tensor],
    act_key: str,
) -> Tensor:
    """`noble_fx::joined_up`, weight [W U] [N, K + r]: x [.., K] -> y [.., N]."""
    rows = x.reshape(-1, x.shape[-1])
    t = trace.eager(act_key, list(act), F.linear(rows, down, down_bias))
    return F.linear(torch.cat([rows, t], dim=-1), weight, bias).reshape(*x.shape[:-1], weight.shape[0])


# Every operator of this project that an exported graph may hold.
DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    LINEAR: linear,
    LINEAR_GROUP: eager_linear_group,
    FACTORIZED: factorized,
    JOINED_FACTORIZED: joined_factorized,
    JOINED_DOWN: joined_down,
    JOINED_UP: joined_up,
}

library.impl("joined_factorized", joined_factorized, "CompositeExplicitAutograd")
library.impl("joined_down", joined_down, "CompositeExplicitAutograd")
library.impl("joined_up", joined_up, "CompositeExplicitAutograd")


@torch.library.register_fake("noble_fx::joined_factorized", lib=library)
def _joined_factorized_fake(x, down, down_bias, up, bias, rank, act, act_key):
    return x.new_empty((*x.shape[:-1], up.shape[0]))


@torch.library.register_fake("noble_fx::joined_down", lib=library)
def _joined_down_fake(x, weight, bias, up, act, act_key):
    return x.new_empty((*x.shape[:-1], up.shape[0]))


@torch.library.register_fake("noble_fx::joined_up", lib=library)
def _joined_up_fake(x, weight, bias, down, down_bias, act, act_key):
    return x.new_empty((*x.shape[:-1], weight.shape[0]))
