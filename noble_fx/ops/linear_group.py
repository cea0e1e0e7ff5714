"""`noble_fx::linear_group`: G linear maps of one input, each with its branch, as one operator.

    linear_group(x, weight, bias, down, down_bias, up, act, act_key) -> y₁ … y_G
    y_i = x W_iᵀ + b_i + σ_i(h_i) U_iᵀ,   h_i = x D_iᵀ + d_i          x [.., K]   h [G, .., r]   y_i [.., N_i]

The sites share x, the rank and the structure of σ, not their parameters; N may differ (grouped-query attention). As for
`noble_fx::linear`, backward keeps only x and h. dx is one sum over the sites, accumulated in one tensor:

    dx = Σ_i dy_i W_i + dh_i D_i
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from noble_fx.ops.autograd import Recomputed, autocast_rule, autograd_rule, places
from noble_fx.ops.linear import (
    bottleneck,
    eager_linear,
    linear_with_branch,
    present,
    rows_of,
    site_gradients,
    wide_dtype,
)
from noble_fx.schema import library

_ops = torch.ops.noble_fx


def by_site(*fields: Any, act: Sequence[Tensor]) -> Iterator[Any]:
    """The tensors of each site, σ's as the last; None for those of a field that is empty, a bias."""
    count = len(fields[0])
    each = len(act) // count
    acts = [act[i * each : (i + 1) * each] for i in range(count)]
    return zip(*(field if len(field) else [None] * count for field in fields), acts, strict=True)


def eager_linear_group(
    x: Tensor,
    weight: Sequence[Tensor],
    bias: Sequence[Tensor],
    down: Sequence[Tensor],
    down_bias: Sequence[Tensor],
    up: Sequence[Tensor],
    act: Sequence[Tensor],
    act_key: str,
) -> list[Tensor]:
    """The operator in ordinary differentiable PyTorch operators: its double backward, and its decomposition."""
    sites = by_site(weight, bias, down, down_bias, up, act=act)
    return [eager_linear(x, w, b, d, d_bias, u, sigma, act_key) for w, b, d, d_bias, u, sigma in sites]


def _forward(
    x: Tensor,
    weight: Sequence[Tensor],
    bias: Sequence[Tensor],
    down: Sequence[Tensor],
    down_bias: Sequence[Tensor],
    up: Sequence[Tensor],
    act: Sequence[Tensor],
    act_key: str,
) -> tuple[list[Tensor], Tensor]:
    h = torch.stack([bottleneck(x, d, d_bias) for d, d_bias, _ in by_site(down, down_bias, act=act)])
    sites = by_site(h, weight, bias, up, act=act)
    return [linear_with_branch(x, h_i, w, b, u, sigma, act_key) for h_i, w, b, u, sigma in sites], h


def _linear_group(*inputs: Any) -> list[Tensor]:
    return _forward(*inputs)[0]


def _backward(
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
    rows, dx, count = rows_of(x), None, len(weight)
    found: list[Tensor | None] = [None] * len(needs)
    for i, (dy_i, h_i, w, d, u, sigma) in enumerate(by_site(dy, h, weight, down, up, act=act)):
        own = places([i], count, len(needs))
        asked = [needs[place] for place in own]
        dx, *rest = site_gradients(rows_of(dy_i), rows, rows_of(h_i), w, d, u, sigma, act_key, asked, dx)
        for place, gradient in zip(own[1:], rest, strict=True):
            found[place] = gradient
    found[0] = None if dx is None else dx.view(x.shape)
    return present(found, x)


# Written in PyTorch operators, so right on every device.
library.impl("linear_group", _linear_group, "CompositeExplicitAutograd")
library.impl("linear_group_forward", _forward, "CompositeExplicitAutograd")
library.impl("linear_group_backward", _backward, "CompositeExplicitAutograd")


@torch.library.register_fake("noble_fx::linear_group", lib=library)
def _linear_group_fake(x, weight, bias, down, down_bias, up, act, act_key):
    return [x.new_empty((*x.shape[:-1], one.shape[0])) for one in weight]


@torch.library.register_fake("noble_fx::linear_group_forward", lib=library)
def _forward_fake(x, weight, bias, down, down_bias, up, act, act_key):
    y = _linear_group_fake(x, weight, bias, down, down_bias, up, act, act_key)
    return y, x.new_empty((len(down), *x.shape[:-1], down[0].shape[0]), dtype=wide_dtype(x))


@torch.library.register_fake("noble_fx::linear_group_backward", lib=library)
def _backward_fake(dy, x, h, weight, down, up, act, act_key, needs):
    biases, down_biases = ([one.new_empty(one.shape[0]) for one in several] for several in (weight, down))
    like = [x, *weight, *biases, *down, *down_biases, *up, *act]
    return [one.new_empty(one.shape if need else 0) for one, need in zip(like, needs, strict=True)]


_GROUP = Recomputed(
    _ops.linear_group, _ops.linear_group_forward, _ops.linear_group_backward, eager_linear_group, grouped=True
)
library.impl("linear_group", autograd_rule(_GROUP), "Autograd")
library.impl("linear_group", autocast_rule(_GROUP, "cpu"), "AutocastCPU")
library.impl("linear_group", autocast_rule(_GROUP, "cuda"), "AutocastCUDA")
