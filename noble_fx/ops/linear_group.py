"""`noble_fx::linear_group`: G linear maps of one input, each with its branch, as one operator.

    linear_group(x, weight, bias, down, down_bias, up, act, act_key) -> y₁ … y_G
    y_i = x W_iᵀ + b_i + σ_i(h_i) U_iᵀ,   h_i = x D_iᵀ + d_i          x [.., K]   h [G, .., r]   y_i [.., N_i]

The sites share x, the rank and the structure of σ, not their parameters; N may differ (grouped-query attention). As for
`noble_fx::linear`, backward keeps only x and h. dx is one sum over the sites, accumulated in one tensor:

    dx = Σ_i dy_i W_i + dh_i D_i
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from noble_fx.ops.autograd import Recomputed, autocast_rule, autograd_rule, vmap_rule
from noble_fx.ops.linear import (
    bottleneck,
    eager_linear,
    empty_gradients,
    gradients,
    linear_with_branch,
    present,
    wide_dtype,
)
from noble_fx.ops.operands import Operands
from noble_fx.schema import LINEAR_GROUP, RULES, library

_ops = torch.ops.noble_fx


def eager_linear_group(*arguments: Any) -> list[Tensor]:
    """The operator in ordinary differentiable PyTorch operators: its double backward, and its decomposition."""
    return [eager_linear(*alone.linear_args()) for alone in Operands.of_group(*arguments).split()]


def forward(*arguments: Any) -> tuple[list[Tensor], Tensor]:
    """(y [.., N] of each site, h [sites, .., r]) by PyTorch operators; h in float32 or better."""
    operands: Operands[Tensor] = Operands.of_group(*arguments)
    x, key = operands.x, operands.key
    h = torch.stack([bottleneck(x, site.down, site.down_bias) for site in operands.sites])
    pairs = zip(h, operands.sites, strict=True)
    return [linear_with_branch(x, h_i, site.weight, site.bias, site.up, site.act, key) for h_i, site in pairs], h


def _linear_group(*arguments: Any) -> list[Tensor]:
    return forward(*arguments)[0]


def backward(
    dy: Sequence[Tensor],
    x: Tensor,
    h: Tensor,
    weight: Sequence[Tensor],
    down: Sequence[Tensor],
    up: Sequence[Tensor],
    act: Sequence[Tensor],
    act_key: str,
    needs: Sequence[bool],
) -> list[Tensor]:
    """One gradient for each operand in the flat order, by PyTorch operators; an empty tensor where `needs` says no."""
    operands = Operands.of_group(x, weight, [], down, [], up, act, act_key)
    return present(gradients_of_sites(dy, h, operands, Operands.from_flat(needs, len(weight))).flat(), x)


def gradients_of_sites(
    dy: Sequence[Tensor], h: Tensor, operands: Operands[Tensor], wanted: Operands[bool]
) -> Operands[Tensor | None]:
    """The gradients of all sites; dx is their sum. None where not wanted."""
    dx, of_sites = None, []
    for dy_i, h_i, alone, alone_wanted in zip(dy, h, operands.split(), wanted.split(), strict=True):
        of_sites.append(gradients(dy_i, h_i, alone, alone_wanted, dx))
        dx = of_sites[-1].x  # the sum so far
    return Operands(dx, Operands.join(of_sites).sites)


# Written in PyTorch operators, so right on every device.
library.impl("linear_group", _linear_group, "CompositeExplicitAutograd")
library.impl("linear_group_forward", forward, "CompositeExplicitAutograd")
library.impl("linear_group_backward", backward, "CompositeExplicitAutograd")


@torch.library.register_fake("noble_fx::linear_group", lib=library)
def _linear_group_fake(x, weight, bias, down, down_bias, up, act, act_key):
    return [x.new_empty((*x.shape[:-1], matrix.shape[0])) for matrix in weight]


@torch.library.register_fake("noble_fx::linear_group_forward", lib=library)
def _forward_fake(x, weight, bias, down, down_bias, up, act, act_key):
    y = _linear_group_fake(x, weight, bias, down, down_bias, up, act, act_key)
    return y, x.new_empty((len(down), *x.shape[:-1], down[0].shape[0]), dtype=wide_dtype(x))


@torch.library.register_fake("noble_fx::linear_group_backward", lib=library)
def _backward_fake(dy, x, h, weight, down, up, act, act_key, needs):
    bias, down_bias = ([matrix.new_empty(matrix.shape[0]) for matrix in matrices] for matrices in (weight, down))
    return empty_gradients(Operands.of_group(x, weight, bias, down, down_bias, up, act), needs)


_GROUP = Recomputed(
    _ops.linear_group, _ops.linear_group_forward, _ops.linear_group_backward, eager_linear_group, grouped=True
)
RULES[LINEAR_GROUP] = autograd_rule(_GROUP)
library.impl("linear_group", RULES[LINEAR_GROUP], "Autograd")
library.impl("linear_group", autocast_rule(_GROUP, "cpu"), "AutocastCPU")
library.impl("linear_group", autocast_rule(_GROUP, "cuda"), "AutocastCUDA")
torch.library.register_vmap("noble_fx::linear_group", vmap_rule(_GROUP), lib=library)
