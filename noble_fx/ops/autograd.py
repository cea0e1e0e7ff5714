"""Autograd and autocast of `linear` and `linear_group`: both keep x and h alone, and compute σ again in backward.
Where neither W nor D learns, no gradient needs x, and h alone is kept (`frozen.py`).

`torch.autograd.Function` takes tensors one by one, so here an operator's operands are passed in their flat order
(`operands.py`). Double backward and `torch.func` differentiate the eager maths instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from noble_fx.branches.trace import activation_program
from noble_fx.ops import frozen
from noble_fx.ops.operands import Operands, places
from noble_fx.torch_versions import below_views, in_forward_ad, in_functorch, without_autocast


@dataclass(frozen=True)
class Recomputed:
    """An operator, the two inner ones that carry its backward, its eager maths, and whether it takes lists."""

    call: Any
    forward: Any
    backward: Any
    eager: Callable[..., Any]
    grouped: bool

    def read(self, arguments: Sequence[Any]) -> Operands[Tensor]:
        """The operands among the operator's arguments."""
        return Operands.of_group(*arguments) if self.grouped else Operands.of_linear(*arguments)

    def arguments(self, operands: Operands[Tensor]) -> tuple[Any, ...]:
        """The operator's arguments; the inverse of `read`."""
        return operands.group_args() if self.grouped else operands.linear_args()


class _RecomputedFunction(torch.autograd.Function):
    @staticmethod
    def forward(operator: Recomputed, arguments: Sequence[Any], count: int, *flat: Any) -> tuple[Tensor, ...]:
        # Without a note of views: y may be one of the product's, and a view that a function returns cannot be changed
        # in place, as the result of nn.Linear can. `flat` is the same tensors as `arguments`, where autograd sees them.
        with below_views():
            y, h = operator.forward(*arguments)
        return (*y, h) if operator.grouped else (y, h)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.operator, arguments, ctx.count, *flat = inputs
        ctx.key = arguments[-1]
        ctx.set_materialize_grads(False)
        ctx.frozen = frozen.is_frozen(flat, ctx.count)
        if ctx.frozen:  # h stays a result that is differentiated, since a second backward finds x by it alone
            ctx.save_for_backward(None, *flat[1:], output[-1])
        else:
            ctx.mark_non_differentiable(output[-1])
            ctx.save_for_backward(*flat, output[-1])

    @staticmethod
    def backward(ctx, *given):
        *flat, h = ctx.saved_tensors
        *dy, dh = given
        used = [site for site, gradient in enumerate(dy) if gradient is not None]
        gradients: list[Tensor | None] = [None] * len(flat)
        if ctx.frozen:
            flat = frozen.without_x(flat, h, ctx.count, ctx.operator.grouped)
        if dh is not None:
            every = Operands.from_flat(flat, ctx.count, ctx.key)
            of_each = dh if ctx.operator.grouped else [dh]
            with without_autocast(h.device.type):
                gradients = frozen.through_bottleneck(gradients, of_each, every, ctx.needs_input_grad[3:])
        if used:
            kept: Sequence[int] = range(len(flat))
            if len(used) < ctx.count:  # the others' parameters get no gradient at all, as if each were alone
                h, kept = h[used], places(len(flat), ctx.count, used)
            operands = Operands.from_flat([flat[place] for place in kept], len(used), ctx.key)
            unused = activation_program(ctx.key, int(h.shape[-1]), h.dtype).unused
            needs = _without(unused, [ctx.needs_input_grad[3 + place] for place in kept], len(used))
            # backward() may be called inside autocast, which would run σ's products in the low precision.
            with without_autocast(h.device.type):
                of_used = _gradients(ctx.operator, [dy[site] for site in used], h, operands, needs, ctx.frozen)
            for place, gradient, need in zip(kept, of_used, needs, strict=True):
                if need:
                    gradients[place] = frozen.total(gradient, gradients[place])
        return None, None, None, *gradients


def _without(unused: Sequence[int], needs: list[bool], count: int) -> list[bool]:
    """The needs of `count` sites but those of parameters that σ does not use: they get no gradient, as in PyTorch."""
    if not unused:
        return needs
    every: Operands[bool] = Operands.from_flat(needs, count)
    acts = [tuple(need and at not in unused for at, need in enumerate(site.act)) for site in every.sites]
    sites = tuple(site._replace(act=act) for site, act in zip(every.sites, acts, strict=True))
    return [bool(need) for need in Operands(every.x, sites).flat()]


def _gradients(
    operator: Recomputed, dy: list[Tensor], h: Tensor, operands: Operands[Tensor], needs: list[bool], without_x: bool
) -> Sequence[Tensor | None]:
    """A gradient for each operand in the flat order; of those that `needs` denies, anything."""
    arguments = operator.arguments(operands)
    if torch.is_grad_enabled() and without_x:
        return frozen.differentiable(dy, list(h) if operator.grouped else [h], operands, needs)
    if torch.is_grad_enabled():  # create_graph=True
        wanted: list[Any] = [tensor for tensor, need in zip(operands.flat(), needs, strict=True) if need]
        y = operator.eager(*arguments)
        gradients = iter(torch.autograd.grad(y, wanted, dy if operator.grouped else dy[0], create_graph=True))
        return [next(gradients) if need else None for need in needs]
    x, weight, _, down, _, up, act, key = arguments
    answer: list[Tensor] = operator.backward(dy if operator.grouped else dy[0], x, h, weight, down, up, act, key, needs)
    return answer


def autograd_rule(operator: Recomputed) -> Callable[..., Any]:
    """What runs under the Autograd key."""

    def rule(*arguments: Any) -> Any:
        if in_functorch() or in_forward_ad():
            return operator.eager(*arguments)
        if torch.is_grad_enabled():
            operands = operator.read(arguments)
            flat = operands.flat()
            if any(tensor is not None and tensor.requires_grad for tensor in flat):
                y = _RecomputedFunction.apply(operator, arguments, len(operands.sites), *flat)[:-1]
                return list(y) if operator.grouped else y[0]
        with below_views():
            return operator.call(*arguments)

    return rule


def vmap_rule(operator: Recomputed) -> Callable[..., Any]:
    """What runs under torch.vmap: one call where x alone is batched, for rows are rows; else one call for each."""

    def rule(info: Any, in_dims: Any, *arguments: Any) -> Any:
        def at(index: int) -> list[Any]:
            pairs = zip(arguments, in_dims, strict=True)
            return [pytree.tree_map(lambda a, dim: a if dim is None else a.select(dim, index), *pair) for pair in pairs]

        def stacked(results: list[Any]) -> Any:
            return list(map(torch.stack, zip(*results, strict=True))) if operator.grouped else torch.stack(results)

        x, x_dim, others = arguments[0], in_dims[0], pytree.tree_leaves(list(in_dims[1:]))
        if all(dim is None for dim in others):
            y = operator.call(x.movedim(x_dim, 0), *arguments[1:])
        else:
            y = stacked([operator.call(*at(index)) for index in range(info.batch_size)])
        return y, [0] * len(y) if operator.grouped else 0

    return rule


def autocast_rule(operator: Recomputed, device: str) -> Callable[..., Any]:
    """What runs under a device's Autocast key: all but σ's tensors are cast, as `F.linear` does."""

    def cast(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [cast(tensor) for tensor in value]
        eligible = value is not None and value.is_floating_point() and value.dtype != torch.float64
        return value.to(torch.get_autocast_dtype(device)) if eligible else value

    def rule(*arguments: Any) -> Any:
        *tensors, act, key = arguments
        with torch.autocast(device, enabled=False):
            return operator.call(*map(cast, tensors), act, key)

    return rule
