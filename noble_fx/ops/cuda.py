"""The operators on CUDA: generated kernels where there are some (`routes.py`), PyTorch operators where not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.library import Library

from noble_fx import schema
from noble_fx.ops import composite, direct, routes
from noble_fx.ops.direct import Flat, Tensors
from noble_fx.ops.linear import present
from noble_fx.ops.operands import Operands


def forward(flat: Tensors, count: int, act_key: str, keep_h: bool = True) -> list[Any]:
    """y [.., N] of each site, then h ([G, .., r] of a group); without `keep_h` it need not be there."""
    results: list[Any] | None = routes.forward(flat, count, act_key, keep_h)
    if results is not None:
        return results
    if count == 1:
        return composite.forward(flat, count, act_key)
    # Too wide for one kernel, perhaps, but not each by itself.
    operands: Operands[Any] = Operands.from_flat(flat, count, act_key)
    y, h = zip(*(forward(alone.flat(), 1, act_key) for alone in operands.split()), strict=True)
    return [*y, torch.stack(h)]


def backward(dy: Sequence[Tensor], h: Tensor, flat: Tensors, count: int, act_key: str, needs: Sequence[bool]) -> Flat:
    """A gradient for each operand in the flat order; None where `needs` says no."""
    gradients = routes.backward(dy, h, flat, count, act_key, needs)
    if gradients is not None:
        return gradients
    if count == 1:
        return composite.backward(dy, h, flat, count, act_key, needs)
    operands: Operands[Any] = Operands.from_flat(flat, count, act_key)
    wanted: Operands[Any] = Operands.from_flat(needs, count)
    each = [
        Operands.from_flat(backward([dy_i], h_i, alone.flat(), 1, act_key, list(map(bool, need.flat()))), 1)
        for dy_i, h_i, alone, need in zip(dy, h, operands.split(), wanted.split(), strict=True)
    ]
    return Operands(_sum([site.x for site in each]), Operands.join(each).sites).flat()


def _sum(gradients: Sequence[Tensor | None]) -> Tensor | None:
    """The sum, in the first of them; None where none is needed."""
    total = None
    for gradient in gradients:
        total = gradient if total is None or gradient is None else total.add_(gradient)
    return total


# --- the operators ---------------------------------------------------------------------------------------------------


def _linear_forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    y, h = forward(direct.flat_of_linear(arguments), 1, arguments[-1])
    return y, h


def _linear(*arguments: Any) -> Tensor:
    y: Tensor = forward(direct.flat_of_linear(arguments), 1, arguments[-1], keep_h=False)[0]
    return y


def _linear_backward(dy, x, h, weight, down, up, act, act_key, needs):
    return present(backward([dy], h, [x, weight, None, down, None, up, *act], 1, act_key, needs), dy)


def _group_forward(*arguments: Any) -> tuple[list[Tensor], Tensor]:
    *y, h = forward(direct.flat_of_group(arguments), len(arguments[1]), arguments[-1])
    return y, h


def _linear_group(*arguments: Any) -> list[Tensor]:
    count = len(arguments[1])
    return forward(direct.flat_of_group(arguments), count, arguments[-1], keep_h=False)[:count]


def _group_backward(dy, x, h, weight, down, up, act, act_key, needs):
    flat = direct.flat_of_group((x, weight, [], down, [], up, act, act_key))
    return present(backward(dy, h, flat, len(weight), act_key, needs), x)


def register(library: Library, device: str = "CUDA") -> None:
    """Make these the operators' implementations for a device."""
    library.impl("linear_group", _linear_group, device)
    library.impl("linear_group_forward", _group_forward, device)
    library.impl("linear_group_backward", _group_backward, device)
    library.impl("linear", _linear, device)
    library.impl("linear_forward", _linear_forward, device)
    library.impl("linear_backward", _linear_backward, device)


register(schema.library)
direct.IMPLEMENTATIONS["cuda"] = direct.Implementation(forward, backward)
