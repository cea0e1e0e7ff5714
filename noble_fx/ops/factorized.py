"""`noble_fx::factorized_linear`: a linear map whose W is A B, and its branch, as one operator.

    factorized_linear(x, base_down, base_up, bias, down, down_bias, up, act, act_key) -> y
    y = z Aᵀ + b + σ(h) Uᵀ,   z = x Bᵀ,   h = x Dᵀ + d      x [.., K]   B [k, K]   A [N, k]   D [r, K]   U [N, r]

One bottleneck, identity on k of its channels and σ on r: y = [z σ(h)] [A U]ᵀ + b. No product is K × N. Backward keeps
x, z and h; σ is computed again from h, as in `noble_fx::linear`.

    dz = dy A       dA = dyᵀ z       dB = dzᵀ x       dx = dz B + dh D
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from noble_fx.branches import trace
from noble_fx.branches.trace import activation_program
from noble_fx.ops.autograd import autocast_rule, vmap_rule
from noble_fx.ops.linear import bottleneck, linear_with_branch, present, rows_of, through_sigma, wide_dtype
from noble_fx.schema import FACTORIZED, RULES, library
from noble_fx.torch_state import below_views, in_forward_ad, in_functorch, without_autocast

_ops = torch.ops.noble_fx
FIXED = 7  # operands before σ's tensors: x, B, A, b, D, d, U


def eager_factorized(
    x: Tensor,
    base_down: Tensor,
    base_up: Tensor,
    bias: Tensor | None,
    down: Tensor,
    down_bias: Tensor | None,
    up: Tensor,
    act: Sequence[Tensor],
    act_key: str,
) -> Tensor:
    """The operator in ordinary differentiable PyTorch operators: its double backward, and its decomposition."""
    t = trace.eager(act_key, list(act), F.linear(x, down, down_bias))
    return F.linear(F.linear(x, base_down), base_up, bias) + F.linear(t, up)


def forward(
    x: Tensor,
    base_down: Tensor,
    base_up: Tensor,
    bias: Tensor | None,
    down: Tensor,
    down_bias: Tensor | None,
    up: Tensor,
    act: Sequence[Tensor],
    act_key: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """(y [.., N], z [.., k], h [.., r]) by PyTorch operators; h in float32 or better."""
    z, h = F.linear(x, base_down), bottleneck(x, down, down_bias)
    return linear_with_branch(z, h, base_up, bias, up, act, act_key), z, h


def backward(
    dy: Tensor,
    x: Tensor,
    z: Tensor,
    h: Tensor,
    base_down: Tensor,
    base_up: Tensor,
    down: Tensor,
    up: Tensor,
    act: Sequence[Tensor],
    act_key: str,
    needs: Sequence[bool],
) -> list[Tensor]:
    """One gradient for each operand, in the operator's order; an empty tensor where `needs` says no."""
    return present(_gradients(dy, x, z, h, base_down, base_up, down, up, act, act_key, needs), dy)


def _gradients(
    dy: Tensor,
    x: Tensor,
    z: Tensor,
    h: Tensor,
    base_down: Tensor,
    base_up: Tensor,
    down: Tensor,
    up: Tensor,
    act: Sequence[Tensor],
    act_key: str,
    needs: Sequence[bool],
) -> list[Tensor | None]:
    need = _Needs(*needs[:FIXED])
    shape, dy, x, z, h = x.shape, rows_of(dy), rows_of(x), rows_of(z), rows_of(h)
    t, dh, d_act = through_sigma(dy @ up, h, act, act_key)
    dz = dy @ base_up if need.x or need.base_down else None
    dx = None
    if need.x:
        assert dz is not None
        dx = torch.addmm(dz @ base_down, dh, down).view(shape)
    return [
        dx,
        dz.t() @ x if need.base_down and dz is not None else None,
        dy.t() @ z if need.base_up else None,
        dy.sum(0) if need.bias else None,
        dh.t() @ x if need.down else None,
        dh.sum(0) if need.down_bias else None,
        dy.t() @ t if need.up else None,
        *(gradient if wanted else None for gradient, wanted in zip(d_act, needs[FIXED:], strict=True)),
    ]


class _Needs(NamedTuple):
    """Which gradients are wanted of the operands that every σ has."""

    x: bool
    base_down: bool
    base_up: bool
    bias: bool
    down: bool
    down_bias: bool
    up: bool


# --- autograd ---------------------------------------------------------------------------------------------------------


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx, act_key: str, *flat: Any) -> Any:
        arguments = (*flat[:FIXED], list(flat[FIXED:]), act_key)
        with below_views():
            y, z, h = _ops.factorized_linear_forward(*arguments)
        ctx.act_key = act_key
        ctx.save_for_backward(*flat, z, h)
        return y

    @staticmethod
    def backward(ctx, dy):
        *flat, z, h = ctx.saved_tensors
        needs = list(ctx.needs_input_grad[1:])
        x, base_down, base_up, _, down, _, up, *act = flat
        with without_autocast(h.device.type):
            if torch.is_grad_enabled():  # create_graph=True
                return None, *_differentiable(dy, flat, ctx.act_key, needs)
            unused = activation_program(ctx.act_key, int(h.shape[-1]), h.dtype).unused
            needs = [need and at - FIXED not in unused for at, need in enumerate(needs)]
            found = _ops.factorized_linear_backward(
                dy, x, z, h, base_down, base_up, down, up, list(act), ctx.act_key, needs
            )
        return None, *(gradient if need else None for gradient, need in zip(found, needs, strict=True))


def _differentiable(dy: Tensor, flat: list[Any], act_key: str, needs: list[bool]) -> list[Tensor | None]:
    wanted = [tensor for tensor, need in zip(flat, needs, strict=True) if need]
    arguments: list[Any] = [*flat[:FIXED], flat[FIXED:], act_key]
    y = eager_factorized(*arguments)
    found = iter(torch.autograd.grad(y, wanted, dy, create_graph=True, allow_unused=True))
    return [next(found) if need else None for need in needs]


def _rule(*arguments: Any) -> Tensor:
    """What runs under the Autograd key."""
    *fixed, act, act_key = arguments
    if in_functorch() or in_forward_ad():
        return eager_factorized(*arguments)
    flat = [*fixed, *act]
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in flat):
        y: Tensor = _Function.apply(act_key, *flat)
        return y
    with below_views():
        result: Tensor = _ops.factorized_linear(*arguments)
        return result


# --- registration -----------------------------------------------------------------------------------------------------


def _factorized_linear(*arguments: Any) -> Tensor:
    return forward(*arguments)[0]


library.impl("factorized_linear", _factorized_linear, "CompositeExplicitAutograd")
library.impl("factorized_linear_forward", forward, "CompositeExplicitAutograd")
library.impl("factorized_linear_backward", backward, "CompositeExplicitAutograd")


@torch.library.register_fake("noble_fx::factorized_linear", lib=library)
def _fake(x, base_down, base_up, bias, down, down_bias, up, act, act_key):
    return x.new_empty((*x.shape[:-1], base_up.shape[0]))


@torch.library.register_fake("noble_fx::factorized_linear_forward", lib=library)
def _forward_fake(x, base_down, base_up, bias, down, down_bias, up, act, act_key):
    rows = x.shape[:-1]
    y, z = x.new_empty((*rows, base_up.shape[0])), x.new_empty((*rows, base_down.shape[0]))
    return y, z, x.new_empty((*rows, down.shape[0]), dtype=wide_dtype(x))


@torch.library.register_fake("noble_fx::factorized_linear_backward", lib=library)
def _backward_fake(dy, x, z, h, base_down, base_up, down, up, act, act_key, needs):
    bias, down_bias = dy.new_empty(dy.shape[-1]), dy.new_empty(h.shape[-1])
    operands = (x, base_down, base_up, bias, down, down_bias, up, *act)
    return [tensor.new_empty(tensor.shape if need else 0) for tensor, need in zip(operands, needs, strict=True)]


class _Called(NamedTuple):
    """What the rules of autocast and vmap ask of an operator."""

    call: Any
    grouped: bool = False


_CALLED: Any = _Called(_ops.factorized_linear)
RULES[FACTORIZED] = _rule
library.impl("factorized_linear", _rule, "Autograd")
library.impl("factorized_linear", autocast_rule(_CALLED, "cpu"), "AutocastCPU")
library.impl("factorized_linear", autocast_rule(_CALLED, "cuda"), "AutocastCUDA")
torch.library.register_vmap("noble_fx::factorized_linear", vmap_rule(_CALLED), lib=library)
