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

from noble_fx.codegen import trace_activation
from noble_fx.codegen.trace_activation import ActivationProgram, activation_program
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
    return F.linear(x, weight, bias) + F.linear(trace_activation.eager(act_key, list(act), h), up)


def _wide(tensor: Tensor) -> torch.dtype:
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
    h = F.linear(x, down, down_bias).to(_wide(x))
    t = _program(h, act_key).forward(h.reshape(-1, h.shape[-1]), *_widen(act, h.dtype)).to(x.dtype)
    # The same call as the plain layer's, then an accumulation: with U = 0 the result is the plain layer's bit for bit.
    y = F.linear(x, weight, bias).contiguous()
    y.view(-1, y.shape[-1]).addmm_(t, up.t())
    return y, h


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
    need_x, need_weight, need_bias, need_down, need_down_bias, need_up, *need_act = needs
    dy, x, h, shape = (*(v.reshape(-1, v.shape[-1]) for v in (dy, x, h)), x.shape)
    t, dh, *dact = _program(h, act_key).backward(h, *_widen(act, h.dtype), (dy @ up).to(h.dtype))
    t, dh = t.to(x.dtype), dh.to(x.dtype)
    dact = [g.to(p.dtype) if need else None for g, p, need in zip(dact, act, need_act, strict=False)]
    found = [
        (dy @ weight).addmm_(dh, down).view(shape) if need_x else None,
        dy.t() @ x if need_weight else None,
        dy.sum(0) if need_bias else None,
        dh.t() @ x if need_down else None,
        dh.sum(0) if need_down_bias else None,
        dy.t() @ t if need_up else None,
        *dact,
        *[None] * (len(act) - len(dact)),  # buffers
    ]
    # An operator's list of results has no place for None.
    return [dy.new_empty(0) if gradient is None else gradient for gradient in found]


# Written in PyTorch operators, so right on every device.
library.impl("linear", _linear, "CompositeExplicitAutograd")
library.impl("linear_forward", forward, "CompositeExplicitAutograd")
library.impl("linear_backward", backward, "CompositeExplicitAutograd")


@torch.library.register_fake("noble_fx::linear", lib=library)
def _linear_fake(x, weight, bias, down, down_bias, up, act, act_key):
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


@torch.library.register_fake("noble_fx::linear_forward", lib=library)
def _forward_fake(x, weight, bias, down, down_bias, up, act, act_key):
    return x.new_empty((*x.shape[:-1], weight.shape[0])), x.new_empty((*x.shape[:-1], down.shape[0]), dtype=_wide(x))


@torch.library.register_fake("noble_fx::linear_backward", lib=library)
def _backward_fake(dy, x, h, weight, down, up, act, act_key, needs):
    like = [x, weight, None, down, None, up, *act]
    vectors = {2: dy.shape[-1], 4: h.shape[-1]}
    return [
        dy.new_empty(0) if not need else dy.new_empty(vectors[i]) if tensor is None else tensor.new_empty(tensor.shape)
        for i, (need, tensor) in enumerate(zip(needs, like, strict=True))
    ]


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(x, weight, bias, down, down_bias, up, act_key, *act):
        return _ops.linear_forward(x, weight, bias, down, down_bias, up, list(act), act_key)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight, bias, down, down_bias, up, ctx.act_key, *act = inputs
        _, h = output
        ctx.mark_non_differentiable(h)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, h, weight, bias, down, down_bias, up, *act)

    @staticmethod
    def backward(ctx, dy, _dh):
        if dy is None:
            return (None,) * len(ctx.needs_input_grad)
        x, h, weight, bias, down, down_bias, up, *act = ctx.saved_tensors
        needs = [need for i, need in enumerate(ctx.needs_input_grad) if i != 6]  # 6 is act_key
        if torch.is_grad_enabled():  # create_graph=True: differentiate the eager maths
            inputs = [x, weight, bias, down, down_bias, up, *act]
            wanted = [t for t, need in zip(inputs, needs, strict=True) if need]
            y = eager_linear(x, weight, bias, down, down_bias, up, act, ctx.act_key)
            found = iter(torch.autograd.grad(y, wanted, dy, create_graph=True))
            grads = [next(found) if need else None for need in needs]
        else:
            grads = _ops.linear_backward(dy, x, h, weight, down, up, act, ctx.act_key, needs)
            grads = [g if need else None for g, need in zip(grads, needs, strict=True)]
        return (*grads[:6], None, *grads[6:])


def _autograd(x, weight, bias, down, down_bias, up, act, act_key):
    if torch._C._are_functorch_transforms_active():  # torch.func: differentiate the eager maths
        return eager_linear(x, weight, bias, down, down_bias, up, act, act_key)
    tensors = [x, weight, bias, down, down_bias, up, *act]
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        return _Linear.apply(x, weight, bias, down, down_bias, up, act_key, *act)[0]
    with torch._C._AutoDispatchBelowAutograd():
        return _ops.linear(x, weight, bias, down, down_bias, up, act, act_key)


def _autocast(device: str) -> Any:
    def cast(tensor: Tensor | None) -> Tensor | None:
        eligible = tensor is not None and tensor.is_floating_point() and tensor.dtype != torch.float64
        return tensor.to(torch.get_autocast_dtype(device)) if tensor is not None and eligible else tensor

    def rule(x, weight, bias, down, down_bias, up, act, act_key):
        with torch.autocast(device, enabled=False):
            return _ops.linear(*map(cast, (x, weight, bias, down, down_bias, up)), act, act_key)

    return rule


library.impl("linear", _autograd, "Autograd")
library.impl("linear", _autocast("cpu"), "AutocastCPU")
library.impl("linear", _autocast("cuda"), "AutocastCUDA")
