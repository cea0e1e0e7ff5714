"""`noble_fx::linear`: one linear map and its branch as one operator.

    linear(x, weight, bias, down, down_bias, up, act, act_key) -> y
    y = x Wᵀ + b + σ(h) Uᵀ,   h = x Dᵀ + d          x [.., K]   W [N, K]   D [r, K]   U [N, r]   y [.., N]

Backward needs only x and h besides the parameters: σ and its derivative are computed again from h, which is r/N of
the size of y. Two inner operators carry that (`schema.py`), so that compiled graphs hold them as one node each:

    dt = dy U        dh = dσ(h)ᵀ dt      dx = dy W + dh D
    dW = dyᵀ x       dU = dyᵀ σ(h)       dD = dhᵀ x       db = Σ dy       dd = Σ dh

σ is computed in float32 or better whatever the dtype of x, and h is kept so: a kernel hands it over unrounded, because
a cosine's argument of 20 to 40 cannot be told from its neighbours in bfloat16. Under autocast x, W, b, D, d and U are
cast as for `F.linear`; σ's own parameters are left as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from noble_fx.branches import trace
from noble_fx.branches.trace import ActivationProgram, activation_program
from noble_fx.ops.autograd import Recomputed, autocast_rule, autograd_rule
from noble_fx.schema import library

_ops = torch.ops.noble_fx


def eager_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    down: Tensor,
    down_bias: Tensor | None,
    up: Tensor,
    act: Sequence[Tensor],
    act_key: str,
) -> Tensor:
    """The operator in ordinary differentiable PyTorch operators: its double backward, and its decomposition."""
    h = F.linear(x, down, down_bias)
    return F.linear(x, weight, bias) + F.linear(trace.eager(act_key, list(act), h), up)


def wide_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype of σ and of h beside an x of this dtype."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _program(h: Tensor, act_key: str) -> ActivationProgram:
    return activation_program(act_key, h.shape[-1], h.dtype)


def _widen(tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    return [t.to(dtype) if t.is_floating_point() else t for t in tensors]


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    down: Tensor,
    down_bias: Tensor | None,
    up: Tensor,
    act: Sequence[Tensor],
    act_key: str,
) -> tuple[Tensor, Tensor]:
    """(y [.., N], h [.., r]) by PyTorch operators; h in float32 or better."""
    h = bottleneck(x, down, down_bias)
    return linear_with_branch(x, h, weight, bias, up, act, act_key), h


def bottleneck(x: Tensor, down: Tensor, down_bias: Tensor | None) -> Tensor:
    """h [.., r] = x Dᵀ + d, in float32 or better."""
    return F.linear(x, down, down_bias).to(wide_dtype(x))


def linear_with_branch(
    x: Tensor, h: Tensor, weight: Tensor, bias: Tensor | None, up: Tensor, act: Sequence[Tensor], act_key: str
) -> Tensor:
    """y [.., N] = x Wᵀ + b + σ(h) Uᵀ."""
    t = _program(h, act_key).forward(rows_of(h), *_widen(act, h.dtype)).to(x.dtype)
    # The same call as the plain layer's, then an accumulation: with U = 0 the result is the plain layer's bit for bit.
    y = F.linear(x, weight, bias).contiguous()
    y.view(-1, y.shape[-1]).addmm_(t, up.t())
    return y


def _linear(*inputs: Any) -> Tensor:
    return forward(*inputs)[0]


def backward(
    dy: Tensor,
    x: Tensor,
    h: Tensor,
    weight: Tensor,
    down: Tensor,
    up: Tensor,
    act: Sequence[Tensor],
    act_key: str,
    needs: Sequence[bool],
) -> list[Tensor]:
    """One gradient for each input, by PyTorch operators; an empty tensor where `needs` says no."""
    dx, *rest = site_gradients(rows_of(dy), rows_of(x), rows_of(h), weight, down, up, act, act_key, needs)
    return present([None if dx is None else dx.view(x.shape), *rest], dy)


def site_gradients(
    dy: Tensor,
    x: Tensor,
    h: Tensor,
    weight: Tensor,
    down: Tensor,
    up: Tensor,
    act: Sequence[Tensor],
    act_key: str,
    needs: Sequence[bool],
    dx: Tensor | None = None,
) -> list[Tensor | None]:
    """The gradients of x, W, b, D, d, U and σ's tensors from rows dy [S, N], x [S, K], h [S, r]; None where not needed.

    A `dx` that is given has this site's added to it, in place.
    """
    need_x, need_weight, need_bias, need_down, need_down_bias, need_up, *need_act = needs
    t, dh, *dact = _program(h, act_key).backward(h, *_widen(act, h.dtype), (dy @ up).to(h.dtype))
    t, dh = t.to(x.dtype), dh.to(x.dtype)
    if need_x:
        dx = (dy @ weight if dx is None else dx.addmm_(dy, weight)).addmm_(dh, down)
    buffers = [None] * (len(act) - len(dact))
    return [
        dx,
        dy.t() @ x if need_weight else None,
        dy.sum(0) if need_bias else None,
        dh.t() @ x if need_down else None,
        dh.sum(0) if need_down_bias else None,
        dy.t() @ t if need_up else None,
        *(g.to(p.dtype) if need else None for g, p, need in zip(dact, act, need_act, strict=False)),
        *buffers,
    ]


def rows_of(tensor: Tensor) -> Tensor:
    """[.., n] as [S, n]."""
    return tensor.reshape(-1, tensor.shape[-1])


def present(gradients: Sequence[Tensor | None], like: Tensor) -> list[Tensor]:
    """The gradients with an empty tensor for each None, for which an operator's list of results has no place."""
    return [like.new_empty(0) if gradient is None else gradient for gradient in gradients]


# Written in PyTorch operators, so right on every device.
library.impl("linear", _linear, "CompositeExplicitAutograd")
library.impl("linear_forward", forward, "CompositeExplicitAutograd")
library.impl("linear_backward", backward, "CompositeExplicitAutograd")


@torch.library.register_fake("noble_fx::linear", lib=library)
def _linear_fake(x, weight, bias, down, down_bias, up, act, act_key):
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


@torch.library.register_fake("noble_fx::linear_forward", lib=library)
def _forward_fake(x, weight, bias, down, down_bias, up, act, act_key):
    return x.new_empty((*x.shape[:-1], weight.shape[0])), x.new_empty(
        (*x.shape[:-1], down.shape[0]), dtype=wide_dtype(x)
    )


@torch.library.register_fake("noble_fx::linear_backward", lib=library)
def _backward_fake(dy, x, h, weight, down, up, act, act_key, needs):
    like = [x, weight, None, down, None, up, *act]
    vectors = {2: dy.shape[-1], 4: h.shape[-1]}
    return [
        dy.new_empty(0) if not need else dy.new_empty(vectors[i]) if tensor is None else tensor.new_empty(tensor.shape)
        for i, (need, tensor) in enumerate(zip(needs, like, strict=True))
    ]


_LINEAR = Recomputed(_ops.linear, _ops.linear_forward, _ops.linear_backward, eager_linear, grouped=False)
library.impl("linear", autograd_rule(_LINEAR), "Autograd")
library.impl("linear", autocast_rule(_LINEAR, "cpu"), "AutocastCPU")
library.impl("linear", autocast_rule(_LINEAR, "cuda"), "AutocastCUDA")
