"""Sites whose W and D do not learn: their gradients need no x, so x is not kept; h says all that is to be known of it.

    dx = dy W + dh D        dh = dσ(h)ᵀ (dy U)        dU = dyᵀ σ(h)        db = Σ dy        dd = Σ dh

Differentiated once more, these depend on x by h alone. So h counts as a result of the operator there, and what comes
back to it goes on to x.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from noble_fx.branches import trace
from noble_fx.ops.operands import Operands, SiteOperands


def is_frozen(flat: Sequence[Any], count: int) -> bool:
    """Whether no W and no D among these operands, in the flat order of `count` sites, wants a gradient."""
    matrices = (*flat[1 : count + 1], *flat[2 * count + 1 : 3 * count + 1])
    return not any(matrix.requires_grad for matrix in matrices)


def without_x(flat: Sequence[Any], h: Tensor, count: int, grouped: bool) -> list[Any]:
    """The operands with something in the place of x [.., K] that has its shape and takes no memory."""
    down = Operands.from_flat(flat, count).sites[0].down
    return [down[0].expand(*h.shape[grouped:-1], down.shape[1]), *flat[1:]]


def differentiable(dy: Sequence[Tensor], h: Sequence[Tensor], operands: Operands[Tensor], needs: Sequence[bool]) -> Any:
    """A gradient for each operand in the flat order, by differentiable operators of dy [.., N] and h [.., r]."""
    wanted: Operands[bool] = Operands.from_flat(needs, len(operands.sites))
    of_sites: list[SiteOperands[Any]] = []
    dx: Tensor | None = None
    for dy_i, h_i, site, need in zip(dy, h, operands.sites, wanted.sites, strict=True):
        t = trace.eager(operands.key, list(site.act), h_i).to(dy_i.dtype)
        learning = [tensor for tensor, learns in zip((site.up, *site.act), (need.up, *need.act), strict=True) if learns]
        found = torch.autograd.grad(
            F.linear(t, site.up), [h_i, *learning], dy_i, create_graph=True, materialize_grads=True
        )
        dh, rest = found[0].to(dy_i.dtype), iter(found[1:])
        if wanted.x:
            dx = total(dx, dy_i @ site.weight + dh @ site.down)
        up = next(rest) if need.up else None
        act = tuple(next(rest) if learns else None for learns in need.act)
        of_sites.append(SiteOperands(None, _sum(dy_i, need.bias), None, _sum(dh, need.down_bias), up, act))
    return Operands(dx, tuple(of_sites)).flat()


def through_bottleneck(
    gradients: list[Tensor | None], dh: Sequence[Tensor], operands: Operands[Tensor], needs: Sequence[bool]
) -> list[Tensor | None]:
    """The gradients in the flat order and, added to them, what dh [.., r] of each site's h brings."""
    count = len(operands.sites)
    places: Operands[int] = Operands.from_flat(range(len(gradients)), count)
    for dh_i, site, place in zip(dh, operands.sites, places.sites, strict=True):
        rows = dh_i.to(site.down.dtype)
        if needs[places.x]:
            gradients[places.x] = total(gradients[places.x], rows @ site.down)
        if place.down_bias is not None and needs[place.down_bias]:
            gradients[place.down_bias] = total(gradients[place.down_bias], _sum(rows, True))
    return gradients


def total(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    """The sum of two gradients, of which either may be none."""
    return other if one is None else one if other is None else one + other


def _sum(rows: Tensor, needed: bool | None) -> Tensor | None:
    return rows.flatten(0, -2).sum(0) if needed else None
