"""The operators on CUDA: generated kernels where there are some, PyTorch operators where not.

`by` runs what has kernels: `routes.py` launches them, `traced.py` makes them nodes of a graph that is compiled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.library import Library

from noble_fx import schema
from noble_fx.ops import composite, direct, routes
from noble_fx.ops.direct import Flat, Tensors
from noble_fx.ops.from_flat import operators_of
from noble_fx.ops.operands import Operands


def forward(flat: Tensors, count: int, act_key: str, keep_h: bool = True, by: Any = routes) -> list[Any]:
    """y [.., N] of each site, then h ([G, .., r] of a group); without `keep_h` it need not be there."""
    results: list[Any] | None = by.forward(flat, count, act_key, keep_h)
    if results is not None:
        return results
    if count == 1:
        return composite.forward(flat, count, act_key)
    # Too wide for one kernel, perhaps, but not each by itself.
    operands: Operands[Any] = Operands.from_flat(flat, count, act_key)
    y, h = zip(*(forward(alone.flat(), 1, act_key, by=by) for alone in operands.split()), strict=True)
    return [*y, torch.stack(h)]


def backward(
    dy: Sequence[Tensor],
    h: Tensor,
    flat: Tensors,
    count: int,
    act_key: str,
    needs: Sequence[bool],
    by: Any = routes,
) -> Flat:
    """A gradient for each operand in the flat order; None where `needs` says no."""
    gradients: Flat | None = by.backward(dy, h, flat, count, act_key, needs)
    if gradients is not None:
        return gradients
    if count == 1:
        return composite.backward(dy, h, flat, count, act_key, needs)
    operands: Operands[Any] = Operands.from_flat(flat, count, act_key)
    wanted: Operands[Any] = Operands.from_flat(needs, count)
    each = [
        Operands.from_flat(backward([dy_i], h_i, alone.flat(), 1, act_key, list(map(bool, need.flat())), by), 1)
        for dy_i, h_i, alone, need in zip(dy, h, operands.split(), wanted.split(), strict=True)
    ]
    return Operands(_sum([site.x for site in each]), Operands.join(each).sites).flat()


def _sum(gradients: Sequence[Tensor | None]) -> Tensor | None:
    """The sum, in the first of them; None where none is needed."""
    total = None
    for gradient in gradients:
        total = gradient if total is None or gradient is None else total.add_(gradient)
    return total


def register(library: Library, device: str = "CUDA") -> None:
    """Make these the operators' implementations for a device."""
    for name, function in operators_of(direct.Implementation(forward, backward)).items():
        library.impl(name, function, device)


register(schema.library)
direct.IMPLEMENTATIONS["cuda"] = direct.Implementation(forward, backward)
