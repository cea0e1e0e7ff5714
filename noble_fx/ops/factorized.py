"""`noble_fx::factorized_linear`: a linear map whose W is A B, and its branch, as one operator.

    factorized_linear(x, base_down, base_up, bias, down, down_bias, up, act, act_key) -> y
    y = z Aᵀ + b + σ(h) Uᵀ,   z = x Bᵀ,   h = x Dᵀ + d      x [.., K]   B [k, K]   A [N, k]   D [r, K]   U [N, r]

One bottleneck, identity on k of its channels and σ on r: y = [z σ(h)] [A U]ᵀ + b. No product is K × N. Backward keeps
x, z and h (z and h alone where neither B nor D learns); σ is computed again from h, as in `noble_fx::linear`.

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
from noble_fx.ops.frozen import total
from noble_fx.ops.linear import bottleneck, linear_with_branch, present, rows_of, through_sigma, wide_dtype
from noble_fx.schema import FACTORIZED, RULES, library
from noble_fx.torch_state import below_views, in_forward_ad, in_functorch, without_autocast

_ops = torch.ops.noble_fx
_FIXED = 7  # operands before σ's tensors


class Factorized(NamedTuple):
    """What the operator takes: tensors, or whatever stands for each (a gradient, whether one is needed)."""

    x: Any
    base_down: Any
    base_up: Any
    bias: Any
    down: Any
    down_bias: Any
    up: Any
    act: tuple[Any, ...]

    @classmethod
    def read(cls, arguments: Sequence[Any]) -> tuple[Factorized, str]:
        """The operands among the operator's arguments, and σ's key."""
        *fixed, act, act_key = arguments
        return cls._make([*fixed, tuple(act)]), act_key

    @classmethod
    def of_flat(cls, flat: Sequence[Any]) -> Factorized:
        """From one list; the inverse of `flat`."""
        return cls._make([*flat[:_FIXED], tuple(flat[_FIXED:])])

    def flat(self) -> list[Any]:
        """Every operand in one list, None where there is no bias."""
        return [*self[:_FIXED], *self.act]

    def arguments(self, act_key: str) -> tuple[Any, ...]:
        """The operator's arguments."""
        return (*self[:_FIXED], list(self.act), act_key)


def eager_factorized(*arguments: Any) -> Tensor:
    """The operator in ordinary differentiable PyTorch operators: its double backward, and its decomposition."""
    of, act_key = Factorized.read(arguments)
    return _outer(of, F.linear(of.x, of.base_down), F.linear(of.x, of.down, of.down_bias), act_key)


def _outer(of: Factorized, z: Tensor, h: Tensor, act_key: str) -> Tensor:
    """z Aᵀ + b + σ(h) Uᵀ"""
    t = trace.eager(act_key, list(of.act), h).to(z.dtype)
    return F.linear(z, of.base_up, of.bias) + F.linear(t, of.up)


def forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    """(y [.., N], z [.., k], h [.., r]) by PyTorch operators; h in float32 or better."""
    of, act_key = Factorized.read(arguments)
    z, h = F.linear(of.x, of.base_down), bottleneck(of.x, of.down, of.down_bias)
    return linear_with_branch(z, h, of.base_up, of.bias, of.up, of.act, act_key), z, h


def backward(*arguments: Any) -> list[Tensor]:
    """One gradient for each operand, in the operator's order; an empty tensor where the needs say no."""
    dy, z, h, of, act_key, needs = read_backward(arguments)
    return present(_gradients(dy, z, h, of, act_key, Factorized.of_flat(needs)).flat(), dy)


def read_backward(arguments: Sequence[Any]) -> tuple[Tensor, Tensor, Tensor, Factorized, str, list[bool]]:
    """dy, z, h, the operands without biases, σ's key and the needs, of `factorized_linear_backward`."""
    dy, x, z, h, base_down, base_up, down, up, act, act_key, needs = arguments
    return dy, z, h, Factorized(x, base_down, base_up, None, down, None, up, tuple(act)), act_key, needs


def _gradients(dy: Tensor, z: Tensor, h: Tensor, of: Factorized, act_key: str, need: Factorized) -> Factorized:
    """The gradient of each operand from dy [.., N], x [.., K], z [.., k], h [.., r]; None where not needed."""
    dy, x, z, h = rows_of(dy), rows_of(of.x), rows_of(z), rows_of(h)
    t, dh, d_act = through_sigma(dy @ of.up, h, of.act, act_key)
    dz: Any = dy @ of.base_up if need.x or need.base_down else None
    return Factorized(
        x=torch.addmm(dz @ of.base_down, dh, of.down).view(of.x.shape) if need.x else None,
        base_down=dz.t() @ x if need.base_down else None,
        base_up=dy.t() @ z if need.base_up else None,
        bias=dy.sum(0) if need.bias else None,
        down=dh.t() @ x if need.down else None,
        down_bias=dh.sum(0) if need.down_bias else None,
        up=dy.t() @ t if need.up else None,
        act=tuple(gradient if wanted else None for gradient, wanted in zip(d_act, need.act, strict=True)),
    )


# --- autograd ---------------------------------------------------------------------------------------------------------


class _Function(torch.autograd.Function):
    """Where neither B nor D learns, z and h say all that is to be known of x, which is not kept (`frozen.py`)."""

    @staticmethod
    def forward(ctx, act_key: str, *flat: Any) -> Any:
        of = Factorized.of_flat(flat)
        with below_views():
            y, z, h = _ops.factorized_linear_forward(*of.arguments(act_key))
        ctx.act_key, ctx.frozen = act_key, not (of.base_down.requires_grad or of.down.requires_grad)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(None if ctx.frozen else of.x, *flat[1:], z, h)
        return (y, z, h) if ctx.frozen else y  # as results, so that a second backward finds x by them

    @staticmethod
    def backward(ctx, dy, *of_bottleneck):
        *flat, z, h = ctx.saved_tensors
        of, needs = Factorized.of_flat(flat), list(ctx.needs_input_grad[1:])
        if ctx.frozen:  # something of x's shape that takes no memory
            of = of._replace(x=of.down[0].expand(*z.shape[:-1], of.down.shape[1]))
        unused = activation_program(ctx.act_key, int(h.shape[-1]), h.dtype).unused
        needs = [need and at - _FIXED not in unused for at, need in enumerate(needs)]
        with without_autocast(h.device.type):
            nothing: list[Tensor | None] = [None] * len(flat)
            found = nothing if dy is None else _all(ctx, dy, z, h, of, needs)
            if ctx.frozen:
                found = _through_bottleneck(found, of_bottleneck, of, Factorized.of_flat(needs))
        return None, *found


def _all(ctx: Any, dy: Tensor, z: Tensor, h: Tensor, of: Factorized, needs: list[bool]) -> list[Tensor | None]:
    """A gradient for each operand from that of y; None where `needs` says no."""
    if torch.is_grad_enabled():  # create_graph=True
        return _differentiable(dy, z if ctx.frozen else None, h, of, ctx.act_key, needs)
    x, base_down, base_up, _, down, _, up, act = of
    found = _ops.factorized_linear_backward(dy, x, z, h, base_down, base_up, down, up, list(act), ctx.act_key, needs)
    return [gradient if need else None for gradient, need in zip(found, needs, strict=True)]


def _differentiable(
    dy: Tensor, z: Tensor | None, h: Tensor, of: Factorized, act_key: str, needs: list[bool]
) -> list[Tensor | None]:
    """By differentiable operators: of x, or of z and h where x was not kept."""
    wanted = [tensor for tensor, need in zip(of.flat(), needs, strict=True) if need]
    if z is None:
        y = eager_factorized(*of.arguments(act_key))
        found = iter(torch.autograd.grad(y, wanted, dy, create_graph=True, materialize_grads=True))
        return [next(found) if need else None for need in needs]
    need = Factorized.of_flat(needs)
    learn = Factorized.of_flat([False, False, need.base_up, need.bias, False, False, need.up, *need.act])
    learning = [tensor for tensor, wants in zip(of.flat(), learn.flat(), strict=True) if wants]
    y = _outer(of, z, h, act_key)
    dz, dh, *rest = torch.autograd.grad(y, [z, h, *learning], dy, create_graph=True, materialize_grads=True)
    each = iter(rest)
    return _through_bottleneck([next(each) if wants else None for wants in learn.flat()], (dz, dh), of, need)


def _through_bottleneck(
    found: list[Tensor | None], of_bottleneck: Sequence[Tensor | None], of: Factorized, need: Factorized
) -> list[Tensor | None]:
    """The gradients and, added to them, what those of z and h bring to x and to d."""
    dz, dh = of_bottleneck
    gradients = Factorized.of_flat(found)
    dx, d_bias = gradients.x, gradients.down_bias
    for rows, matrix in ((dz, of.base_down), (dh, of.down)):
        if rows is not None and need.x:
            dx = total(dx, rows.to(matrix.dtype) @ matrix)
    if dh is not None and need.down_bias:
        d_bias = total(d_bias, dh.to(of.down.dtype).flatten(0, -2).sum(0))
    return gradients._replace(x=dx, down_bias=d_bias).flat()


def _rule(*arguments: Any) -> Tensor:
    """What runs under the Autograd key."""
    of, act_key = Factorized.read(arguments)
    if in_functorch() or in_forward_ad():
        return eager_factorized(*arguments)
    flat = of.flat()
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in flat):
        result: Any = _Function.apply(act_key, *flat)
        y: Tensor = result if isinstance(result, Tensor) else result[0]
        return y
    with below_views():
        plain: Tensor = _ops.factorized_linear(*arguments)
        return plain


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
