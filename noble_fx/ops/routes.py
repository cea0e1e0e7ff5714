"""From an operator's tensors to what runs them on a GPU: resolved once for their dtypes, sizes and strides, then found.

A route is one direction of one layer at one layout of its operands: its kernels, and the variant that is fastest here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from noble_fx.errors import KernelError
from noble_fx.ops.available import refuse
from noble_fx.ops.directions import (
    Direction,
    Tensors,
    as_rows,
    backward_direction,
    forward_direction,
    without_biases,
)
from noble_fx.runtime.autotune import Variant, choose, is_final
from noble_fx.runtime.bound_call import aligned
from noble_fx.runtime.execute import Executor
from noble_fx.runtime.layer_kernels import DESCRIPTORS
from noble_fx.torch_state import layout_check
from noble_fx.torch_versions import tf32_products

Flat = list[Tensor | None]
MOST = 4096  # routes that are kept: a program of ever new sizes begins anew

_routes: dict[tuple[Any, ...], Route | None] = {}
_recent: dict[tuple[Any, ...], tuple[Callable[..., bool], Route | None]] = {}  # by less, and looked at in C++


def forward(flat: Tensors, count: int, act_key: str, keep_h: bool) -> list[Tensor] | None:
    """y [.., N] of each site, then h ([G, .., r] of a group) where it is kept; None where PyTorch operators must do.

    `flat` are the operands in the flat order (`operands.py`).
    """
    tensors: list[Any] = [tensor for tensor in flat if tensor is not None]
    less = (act_key, count, keep_h, flat[count + 1] is None, tensors[0].shape, len(tensors))
    route = found(less, tensors, lambda: forward_direction(flat, count, act_key, keep_h))
    return None if route is None else route.run(tensors)


def backward(
    dy: Sequence[Tensor], h: Tensor, flat: Tensors, count: int, act_key: str, needs: Sequence[bool]
) -> Flat | None:
    """A gradient for each operand in the flat order, None where `needs` says no; or None as for `forward`."""
    tensors = [*dy, *without_biases(flat, count), h]
    less = (act_key, count, tuple(needs), dy[0].shape)
    route = found(less, tensors, lambda: backward_direction(dy, h, flat, count, act_key, needs))
    results = None if route is None else route.run(tensors)
    if results is None:
        return None
    answers = iter(results)
    return [next(answers) if need else None for need in needs]


def forget() -> None:
    """Resolve everything anew."""
    _routes.clear()
    _recent.clear()


def found(less: tuple[Any, ...], tensors: Sequence[Tensor], resolve: Callable[[], Direction | None]) -> Route | None:
    """The route of these tensors: the last one that was asked for with `less`, where it fits, or else by all that
    decides how they are run."""
    if tensors[0].dtype is torch.float32:
        less = (*less, tf32_products())
    recent = _recent.get(less)
    if recent is not None and recent[0](*tensors) and (recent[1] is None or not recent[1].refused):
        return recent[1]
    key = (less, *((t.dtype, t.device, t.shape, t.stride()) for t in tensors))
    if key not in _routes or ((known := _routes[key]) is not None and known.refused):
        if len(_routes) >= MOST:
            forget()
        direction = resolve()
        _routes[key] = None if direction is None else Route(direction)
    _recent[less] = layout_check(tensors), _routes[key]
    return _routes[key]


class Route:
    """One direction of one layer at one layout."""

    def __init__(self, direction: Direction):
        direction = direction.shadowed()
        self._layer, self._device = direction.kernels.layer, direction.device
        self._question = direction.question(direction.rows)
        self._variants, self._default = direction.variants
        self._make = functools.cache(functools.partial(_executor, direction))
        self._chosen: Executor | None = None
        self._is_described = any(DESCRIPTORS in variant for variant in self._variants)
        self.refused = False

    def run(self, tensors: Sequence[Tensor]) -> list[Tensor] | None:
        """The results; None, and a warning once, where the compiler or the GPU refuses these kernels."""
        try:
            if self._is_described and not aligned([tensor.data_ptr() for tensor in tensors]):
                return self._make(self._default)(tensors)  # a descriptor of such an address is an error of the GPU's
            if self._chosen is not None:
                return self._chosen(tensors)
            variant = choose(
                self._question, self._variants, self._default, lambda v: self._make(v)(tensors), self._device
            )
            executor = self._make(variant)
            if is_final(self._question, self._variants):
                self._chosen, self._is_described = executor, DESCRIPTORS in variant
            return executor(tensors)
        except KernelError as problem:
            self.refused = True
            refuse(self._layer, self._device, problem)
            return None


def _executor(direction: Direction, variant: Variant) -> Executor:
    call = direction.call(variant)
    at = {name: index for index, name in enumerate(call.operands)}
    seen = call.seen_by_pytorch()
    # Kernels see addresses: rows of a contiguous tensor need no view of it.
    steps = [(at[name], step) for name, step in direction.prepare.items() if at[name] in seen or step is not as_rows]
    return Executor(direction.kernels.plan, call, direction.rows, direction.device, steps, direction.shapes)
