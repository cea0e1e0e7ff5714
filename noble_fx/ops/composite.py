"""The operators in PyTorch operators, by operands in the flat order: right on every device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from noble_fx.ops import direct, linear, linear_group
from noble_fx.ops.direct import Flat, Tensors
from noble_fx.ops.operands import Operands
from noble_fx.torch_state import below_views


def forward(flat: Tensors, count: int, act_key: str, keep_h: bool = True) -> list[Any]:
    """y [.., N] of each site, then h ([G, .., r] of a group)."""
    operands: Operands[Any] = Operands.from_flat(flat, count, act_key)
    with below_views():  # y may be a view of the product's
        if count == 1:
            return list(linear.forward(*operands.linear_args()))
        y, h = linear_group.forward(*operands.group_args())
        return [*y, h]


def backward(dy: Sequence[Tensor], h: Tensor, flat: Tensors, count: int, act_key: str, needs: Sequence[bool]) -> Flat:
    """A gradient for each operand in the flat order; None where `needs` says no."""
    operands: Operands[Any] = Operands.from_flat(flat, count, act_key)
    wanted: Operands[Any] = Operands.from_flat(needs, count)
    if count == 1:
        return linear.gradients(dy[0], h, operands, wanted).flat()
    return linear_group.gradients_of_sites(dy, h, operands, wanted).flat()


direct.IMPLEMENTATIONS["cpu"] = direct.Implementation(forward, backward)
