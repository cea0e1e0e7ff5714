"""The generated kernels as nodes of a graph that is being compiled (`traced_call.py`), in the variant that is fastest.

What runs in a graph cannot be refused any more. So where there is a GPU, the layer is run there once on numbers of its
sizes while the graph is traced: that compiles its kernels, measures its variants, and finds what the GPU refuses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from noble_fx.ops import routes
from noble_fx.ops.directions import Direction, Tensors, backward_direction, forward_direction
from noble_fx.runtime.autotune import answers
from noble_fx.runtime.layer_kernels import DESCRIPTORS
from noble_fx.runtime.traced_call import trace_call
from noble_fx.torch_state import outside_modes
from noble_fx.torch_versions import likely_size

Flat = list[Tensor | None]


def forward(flat: Tensors, count: int, act_key: str, keep_h: bool) -> list[Tensor] | None:
    """As `routes.forward`, of a tracer's tensors."""

    def on_numbers() -> bool:
        return routes.forward(_stand_ins(flat), count, act_key, keep_h) is not None

    direction = forward_direction(flat, count, act_key, keep_h)
    return None if direction is None or _is_refused(direction, on_numbers) else _run(direction)


def backward(
    dy: Sequence[Tensor], h: Tensor, flat: Tensors, count: int, act_key: str, needs: Sequence[bool]
) -> Flat | None:
    """As `routes.backward`, of a tracer's tensors."""

    def on_numbers() -> bool:
        (own_h,), own_dy = _stand_ins([h]), _stand_ins(dy)
        return routes.backward(own_dy, own_h, _stand_ins(flat), count, act_key, needs) is not None

    direction = backward_direction(dy, h, flat, count, act_key, needs)
    if direction is None or _is_refused(direction, on_numbers):
        return None
    found = iter(_run(direction))
    return [next(found) if need else None for need in needs]


def _run(direction: Direction) -> list[Tensor]:
    variants, default = direction.variants
    variant = answers().get(direction.question(likely_size(direction.rows)), default)
    # Triton lends memory for descriptors to who launches, which here is Inductor.
    call = direction.call(variant if variant in variants and DESCRIPTORS not in variant else default)
    return trace_call(direction.kernels.plan, call, direction.operands, direction.shapes)


def _is_refused(direction: Direction, on_numbers: Callable[[], bool]) -> bool:
    """Whether the GPU does not take these kernels; without one, as when compiling for another machine, nobody knows."""
    if not _is_here(direction.device):
        return False
    with outside_modes(), torch.no_grad():
        return not on_numbers()


def _is_here(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_available()


def _stand_ins(tensors: Tensors) -> list[Any]:
    """Tensors with numbers, of the sizes that these are likely to have."""
    return [None if tensor is None else _stand_in(tensor) for tensor in tensors]


def _stand_in(tensor: Tensor) -> Tensor:
    shape, stride = (tuple(map(likely_size, sizes)) for sizes in (tensor.shape, tensor.stride()))
    made = torch.empty_strided(shape, stride, dtype=tensor.dtype, device=tensor.device)
    if not tensor.is_floating_point():
        return made.zero_()
    # Numbers like a model's: products of zeros are faster than others. Nobody's generator is drawn from.
    return made.normal_(generator=torch.Generator(tensor.device).manual_seed(0))
