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
from noble_fx.ops.direct import flat_of_group, flat_of_linear, implementation
from noble_fx.ops.operands import Operands, places
from noble_fx.torch_state import below_views, in_forward_ad, in_functorch, without_autocast


@dataclass(frozen=True)
class Recomputed:
    """An operator, the two inner ones that carry its backward, its eager maths, and whether it takes lists."""

    call: Any
    forward: Any
    backward: Any
    eager: Callable[..., Any]
    grouped: bool

    def flat(self, arguments: Sequence[Any]) -> list[Any]:
        """The operands among the operator's arguments, in the flat order."""
        return flat_of_group(arguments) if self.grouped else flat_of_linear(arguments)

    def count(self, arguments: Sequence[Any]) -> int:
        """How many sites there are."""
        return len(arguments[1]) if self.grouped else 1

    def run(self, flat: Sequence[Any], count: int, act_key: str) -> list[Any]:
        """y of each site, and h: by the device's implementation, through the dispatcher where that has more to do."""
        if own := implementation(flat):
            return own.forward(flat, count, act_key, True)
        with below_views():
            y, h = self.forward(*self.arguments(Operands.from_flat(flat, count, act_key)))
        return [*y, h] if self.grouped else [y, h]

    def run_backward(
        self, dy: Sequence[Any], h: Tensor, flat: list[Any], count: int, act_key: str, needs: list[bool]
    ) -> list[Tensor | None]:
        """A gradient for each operand in the flat order; None where `needs` says no."""
        if own := implementation([*dy, *flat]):
            return own.backward(dy, h, flat, count, act_key, needs)
        operands: Operands[Any] = Operands.from_flat(flat, count, act_key)
        x, weight, _, down, _, up, act, key = self.arguments(operands)
        found = self.backward(list(dy) if self.grouped else dy[0], x, h, weight, down, up, act, key, needs)
        return [gradient if need else None for gradient, need in zip(found, needs, strict=True)]

    def arguments(self, operands: Operands[Tensor]) -> tuple[Any, ...]:
        """The operator's arguments; the inverse of `read`."""
        return operands.group_args() if self.grouped else operands.linear_args()


class _RecomputedFunction(torch.autograd.Function):
    # Not by `setup_context`, which costs twice as much; `torch.func`, which asks for it, never comes here.
    @staticmethod
    def forward(ctx, operator: Recomputed, act_key: str, count: int, *flat: Any) -> Any:
        *y, h = operator.run(flat, count, act_key)
        ctx.operator, ctx.act_key, ctx.count = operator, act_key, count
        ctx.set_materialize_grads(False)
        ctx.frozen = frozen.is_frozen(flat, count)
        if ctx.frozen:  # h is a result that is differentiated, since a second backward finds x by it alone
            ctx.save_for_backward(None, *flat[1:], h)
            return (*y, h)
        ctx.save_for_backward(*flat, h)
        return tuple(y) if operator.grouped else y[0]

    @staticmethod
    def backward(ctx, *dy):
        *flat, h = ctx.saved_tensors
        # backward() may be called inside autocast, which would run σ's products in the low precision.
        with without_autocast(h.device.type):
            return None, None, None, *_backward(ctx, dy, flat, h)


def _backward(ctx: Any, given: Sequence[Tensor | None], flat: list[Any], h: Tensor) -> list[Tensor | None]:
    """A gradient for each operand in the flat order, from those of y and, where x is not kept, of h."""
    operator, act_key, count, needs = ctx.operator, ctx.act_key, ctx.count, list(ctx.needs_input_grad[3:])
    of_sites: Any
    unused = activation_program(act_key, int(h.shape[-1]), h.dtype).unused
    if not ctx.frozen and all(gradient is not None for gradient in given):
        return _gradients(operator, given, h, flat, count, act_key, _without(unused, needs, count), False)
    gradients: list[Tensor | None] = [None] * len(flat)
    if ctx.frozen:
        *given, dh = given
        flat = frozen.without_x(flat, h, count, operator.grouped)
        if dh is not None:
            every = Operands.from_flat(flat, count, act_key)
            of_sites = dh if operator.grouped else [dh]
            gradients = frozen.through_bottleneck(gradients, of_sites, every, needs)
    used = [site for site, gradient in enumerate(given) if gradient is not None]
    if not used:
        return gradients
    kept: Sequence[int] = range(len(flat))
    if len(used) < count:  # the others' parameters get no gradient at all, as if each were alone
        h, kept = h[used], places(len(flat), count, used)
    wanted = _without(unused, [needs[place] for place in kept], len(used))
    dy, operands = [given[site] for site in used], [flat[place] for place in kept]
    of_used = _gradients(operator, dy, h, operands, len(used), act_key, wanted, ctx.frozen)
    for place, gradient, need in zip(kept, of_used, wanted, strict=True):
        if need:
            gradients[place] = frozen.total(gradient, gradients[place])
    return gradients


def _without(unused: Sequence[int], needs: list[bool], count: int) -> list[bool]:
    """The needs of `count` sites but those of parameters that σ does not use: they get no gradient, as in PyTorch."""
    if not unused:
        return needs
    every: Operands[bool] = Operands.from_flat(needs, count)
    acts = [tuple(need and at not in unused for at, need in enumerate(site.act)) for site in every.sites]
    sites = tuple(site._replace(act=act) for site, act in zip(every.sites, acts, strict=True))
    return [bool(need) for need in Operands(every.x, sites).flat()]


def _gradients(
    operator: Recomputed,
    dy: Sequence[Any],
    h: Tensor,
    flat: list[Any],
    count: int,
    act_key: str,
    needs: list[bool],
    without_x: bool,
) -> list[Tensor | None]:
    """A gradient for each operand in the flat order; None where `needs` says no."""
    if not torch.is_grad_enabled():
        return operator.run_backward(dy, h, flat, count, act_key, needs)
    operands: Operands[Any] = Operands.from_flat(flat, count, act_key)  # create_graph=True
    if without_x:
        return list(frozen.differentiable(dy, list(h) if operator.grouped else [h], operands, needs))
    wanted: list[Any] = [tensor for tensor, need in zip(flat, needs, strict=True) if need]
    y = operator.eager(*operator.arguments(operands))
    gradients = iter(torch.autograd.grad(y, wanted, list(dy) if operator.grouped else dy[0], create_graph=True))
    return [next(gradients) if need else None for need in needs]


def autograd_rule(operator: Recomputed) -> Callable[..., Any]:
    """What runs under the Autograd key."""

    def rule(*arguments: Any) -> Any:
        if in_functorch() or in_forward_ad():
            return operator.eager(*arguments)
        flat = operator.flat(arguments)
        if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in flat):
            count = operator.count(arguments)
            y = _RecomputedFunction.apply(operator, arguments[-1], count, *flat)
            return list(y[:count]) if operator.grouped else y if isinstance(y, Tensor) else y[0]
        own = implementation(flat)
        if own is None:
            with below_views():
                return operator.call(*arguments)
        count = operator.count(arguments)
        y = own.forward(flat, count, arguments[-1], False)
        return y[:count] if operator.grouped else y[0]

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
