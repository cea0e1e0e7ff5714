"""Autograd and autocast of `linear` and `linear_group`: both keep x and h alone, and compute σ again in backward.

Whatever its signature, an operator's tensors are read here as one row, for G sites, None where a site has none:

    x, W₁ … W_G, b₁ … b_G, D₁ … D_G, d₁ … d_G, U₁ … U_G, σ₁'s tensors … σ_G's tensors

One linear map is G = 1. Double backward and `torch.func` differentiate the eager maths instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from noble_fx.torch_versions import below_autograd, in_functorch

Row = Sequence[Tensor | None]
_FIELDS = 5  # W, b, D, d, U


@dataclass(frozen=True)
class Recomputed:
    """An operator, the two inner ones that carry its backward, its eager maths, and whether it takes lists."""

    call: Any
    forward: Any
    backward: Any
    eager: Callable[..., Any]
    grouped: bool

    def row(self, inputs: Sequence[Any]) -> tuple[int, list[Tensor | None]]:
        """G, and the operator's tensors as one row."""
        x, *fields, act = inputs
        count = len(fields[0]) if self.grouped else 1
        lists = [list(field) or [None] * count for field in fields] if self.grouped else [[field] for field in fields]
        return count, [x, *(tensor for one in lists for tensor in one), *act]

    def inputs(self, count: int, row: Row) -> tuple[Any, ...]:
        """The operator's tensor arguments; the inverse of `row`."""
        fields: list[Any] = [row[1 + i * count : 1 + (i + 1) * count] for i in range(_FIELDS)]
        if self.grouped:
            fields = [[] if field[0] is None else list(field) for field in fields]
        else:
            fields = [field[0] for field in fields]
        return row[0], *fields, list(row[1 + _FIELDS * count :])


def places(sites: Sequence[int], count: int, length: int) -> list[int]:
    """Where in a row of `length` tensors the x and the tensors of these sites stand."""
    act = (length - 1 - _FIELDS * count) // count
    own = [1 + field * count + i for field in range(_FIELDS) for i in sites]
    return [0, *own, *(1 + _FIELDS * count + i * act + n for i in sites for n in range(act))]


class _RecomputedFunction(torch.autograd.Function):
    @staticmethod
    def forward(operator: Recomputed, count: int, act_key: str, *row: Tensor | None) -> tuple[Tensor, ...]:
        y, h = operator.forward(*operator.inputs(count, row), act_key)
        return (*y, h) if operator.grouped else (y, h)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.operator, ctx.count, ctx.act_key, *row = inputs
        ctx.mark_non_differentiable(output[-1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*row, output[-1])

    @staticmethod
    def backward(ctx, *dy):
        *row, h = ctx.saved_tensors
        used = [i for i, one in enumerate(dy[:-1]) if one is not None]  # the last belongs to h
        gradients: list[Tensor | None] = [None] * len(row)
        if used:
            if len(used) < ctx.count:  # the others' parameters get no gradient at all, as if each were alone
                h = h[used]
            kept = places(used, ctx.count, len(row))
            needs = [ctx.needs_input_grad[3 + place] for place in kept]
            # backward() may be called inside autocast, which would run σ's products in the low precision.
            with _without_autocast(h.device.type):
                found = _gradients(ctx, [dy[i] for i in used], h, [row[place] for place in kept], needs)
            for place, gradient, need in zip(kept, found, needs, strict=True):
                gradients[place] = gradient if need else None
        return None, None, None, *gradients


def _without_autocast(device: str) -> AbstractContextManager[Any]:
    # Asked first: some devices, meta for one, have no autocast that could be switched off.
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def _gradients(ctx: Any, dy: list[Tensor], h: Tensor, row: Row, needs: list[bool]) -> Sequence[Tensor | None]:
    operator, inputs = ctx.operator, ctx.operator.inputs(len(dy), row)
    if torch.is_grad_enabled():  # create_graph=True
        wanted: list[Any] = [tensor for tensor, need in zip(row, needs, strict=True) if need]
        y = operator.eager(*inputs, ctx.act_key)
        found = iter(torch.autograd.grad(y, wanted, dy if operator.grouped else dy[0], create_graph=True))
        return [next(found) if need else None for need in needs]
    x, weight, _, down, _, up, act = inputs
    answer: list[Tensor] = operator.backward(
        dy if operator.grouped else dy[0], x, h, weight, down, up, act, ctx.act_key, needs
    )
    return answer


def autograd_rule(operator: Recomputed) -> Callable[..., Any]:
    """What runs under the Autograd key."""

    def rule(*inputs: Any) -> Any:
        if in_functorch():
            return operator.eager(*inputs)
        *tensors, act_key = inputs
        count, row = operator.row(tensors)
        if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in row):
            y = _RecomputedFunction.apply(operator, count, act_key, *row)[:-1]
            return list(y) if operator.grouped else y[0]
        with below_autograd():
            return operator.call(*inputs)

    return rule


def autocast_rule(operator: Recomputed, device: str) -> Callable[..., Any]:
    """What runs under a device's Autocast key: all but σ's tensors are cast, as `F.linear` does."""

    def cast(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [cast(one) for one in value]
        eligible = value is not None and value.is_floating_point() and value.dtype != torch.float64
        return value.to(torch.get_autocast_dtype(device)) if eligible else value

    def rule(*inputs: Any) -> Any:
        *tensors, act, act_key = inputs
        with torch.autocast(device, enabled=False):
            return operator.call(*map(cast, tensors), act, act_key)

    return rule
