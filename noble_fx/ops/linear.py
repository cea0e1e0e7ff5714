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
from noble_fx.ops.autograd import Recomputed, autocast_rule, autograd_rule, vmap_rule
from noble_fx.ops.operands import Operands, SiteOperands
from noble_fx.schema import LINEAR, RULES, library
from noble_fx.torch_state import is_fake

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
    return activation_program(act_key, int(h.shape[-1]), h.dtype)  # a rank is a number, also where sizes are symbols


def _widen(tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    return [_cast(tensor, dtype) if tensor.is_floating_point() else tensor for tensor in tensors]


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor if tensor.dtype == dtype else tensor.to(dtype)  # a call of `to` costs a microsecond even for nothing


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
    return _cast(F.linear(x, down, down_bias), wide_dtype(x))


def linear_with_branch(
    x: Tensor, h: Tensor, weight: Tensor, bias: Tensor | None, up: Tensor, act: Sequence[Tensor], act_key: str
) -> Tensor:
    """y [.., N] = x Wᵀ + b + σ(h) Uᵀ."""
    t = _cast(_program(h, act_key).apply(rows_of(h), *_widen(act, h.dtype)), x.dtype)
    # The same call as the plain layer's, then an accumulation: with U = 0 the result is the plain layer's bit for bit.
    return _plus(F.linear(x, weight, bias).contiguous(), t, up.t())


def _plus(total: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """total [.., n] + left · right, in its memory; in a graph that is traced a sum, which Inductor fuses with others.

    Not in 16 bits, where the product would be rounded before it is added. The sum has the shape of the total, since
    Inductor would make one of [rows, n] a product that begins with a copy.
    """
    if is_fake(total) and total.dtype == wide_dtype(total):
        return total + (left @ right).view(total.shape)
    total.view(-1, total.shape[-1]).addmm_(left, right)
    return total


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
    """One gradient for each operand in the flat order, by PyTorch operators; an empty tensor where `needs` says no."""
    operands = Operands.of_linear(x, weight, None, down, None, up, act, act_key)
    return present(gradients(dy, h, operands, Operands.from_flat(needs, 1)).flat(), dy)


def gradients(
    dy: Tensor, h: Tensor, operands: Operands[Tensor], needs: Operands[bool], dx: Tensor | None = None
) -> Operands[Tensor | None]:
    """The gradients of one site from dy [.., N], x [.., K], h [.., r], in these shapes; None where not needed.

    A `dx` that is there has this site's added to it, in place.
    """
    x, (site,), (need,) = rows_of(operands.x), operands.sites, needs.sites
    dy, h = rows_of(dy), rows_of(h)
    t, dh, d_act = through_sigma(dy @ site.up, h, site.act, operands.key)
    if needs.x:
        dx = (dy @ site.weight).view(operands.x.shape) if dx is None else _plus(dx, dy, site.weight)
        dx = _plus(dx, dh, site.down)
    of_site: SiteOperands[Tensor | None] = SiteOperands(
        weight=dy.t() @ x if need.weight else None,
        bias=dy.sum(0) if need.bias else None,
        down=dh.t() @ x if need.down else None,
        down_bias=dh.sum(0) if need.down_bias else None,
        up=dy.t() @ t if need.up else None,
        act=tuple(gradient if wanted else None for gradient, wanted in zip(d_act, need.act, strict=True)),
    )
    return Operands(dx, (of_site,))


def through_sigma(
    dt: Tensor, h: Tensor, act: Sequence[Tensor], act_key: str
) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    """t = σ(h) and dh [S, r] in the dtype of dt, and the gradient of each of σ's tensors: None for its buffers."""
    t, dh, *found = activation_program(act_key, int(h.shape[-1]), h.dtype).differentiate(
        h, *_widen(act, h.dtype), _cast(dt, h.dtype)
    )
    of_parameters = [_cast(gradient, tensor.dtype) for gradient, tensor in zip(found, act, strict=False)]
    buffers = [None] * (len(act) - len(found))  # the last of `act`
    return _cast(t, dt.dtype), _cast(dh, dt.dtype), [*of_parameters, *buffers]


def rows_of(tensor: Tensor) -> Tensor:
    """[.., n] as [S, n]."""
    return tensor.reshape(-1, tensor.shape[-1])


def present(gradients: Sequence[Tensor | None], like: Tensor) -> list[Tensor]:
    """The gradients, with an empty tensor for each None: an operator's results cannot be absent."""
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
    bias, down_bias = dy.new_empty(dy.shape[-1]), dy.new_empty(h.shape[-1])
    return empty_gradients(Operands.of_linear(x, weight, bias, down, down_bias, up, act), needs)


def empty_gradients(operands: Operands[Tensor], needs: Sequence[bool]) -> list[Tensor]:
    """Tensors of the shapes that gradients in the flat order have, without values."""
    return [
        tensor.new_empty(tensor.shape if need else 0)  # type: ignore[union-attr]  # biases are there
        for tensor, need in zip(operands.flat(), needs, strict=True)
    ]


_LINEAR = Recomputed(_ops.linear, _ops.linear_forward, _ops.linear_backward, eager_linear, grouped=False)
RULES[LINEAR] = autograd_rule(_LINEAR)
library.impl("linear", RULES[LINEAR], "Autograd")
library.impl("linear", autocast_rule(_LINEAR, "cpu"), "AutocastCPU")
library.impl("linear", autocast_rule(_LINEAR, "cuda"), "AutocastCUDA")
torch.library.register_vmap("noble_fx::linear", vmap_rule(_LINEAR), lib=library)
