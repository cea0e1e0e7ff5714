"""A call whose kernels are compiled: addresses go to their places, and each kernel is started with its own.

They are the kernels that Triton would start. What it looks at is either resolved (dtypes, strides) or looked at here:
an address that is no multiple of 16, another current device, and hooks of a profiler take Triton's own launcher.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import prod
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from noble_fx.runtime.call import Buffer, Call, Launch, Slot
from noble_fx.runtime.compiled import is_observed, starter, stream_of
from noble_fx.runtime.launch import grid_of

_PIECE = 256  # bytes: pieces of a workspace begin at multiples, as tensors do in an allocator of PyTorch's


def aligned(addresses: Sequence[int]) -> bool:
    """Whether all are multiples of 16, by which Triton tells two compilations of a kernel apart."""
    bits = 0
    for address in addresses:
        bits |= address
    return not bits & 15


class BoundCall:
    """A call for operands of one layout and one number of rows, on one device."""

    def __init__(
        self,
        call: Call,
        compiled: Sequence[Any],
        rows: int,
        shapes: Mapping[int, tuple[int, ...]],
        device: torch.device,
    ):
        self._device, self._operands, self._slots = device, len(call.operands), len(call.names)
        seen, results = call.seen_by_pytorch(), set(call.results.values())
        self._is_piece = {b.slot for b in call.buffers if b.scratch} - seen - results - {p.whole for p in call.parts}
        self._made = [
            (b.slot, _maker(shapes[b.slot], b.dtype, device)) for b in call.buffers if b.slot not in self._is_piece
        ]
        self._pieces, size = _laid_out([b for b in call.buffers if b.slot in self._is_piece], shapes)
        self._workspace = _maker((size,), torch.uint8, device) if size else None
        self._parts = [(part.slot, part.whole, part.site * rows * part.row_bytes) for part in call.parts]
        self._views = [(part, rows) for part in call.parts if part.slot in seen]
        self._values, self._steps = _steps(call, compiled, rows, device)

    def run(self, tensors: list[Any]) -> bool:
        """Fill `tensors`, of which the operands are there; False where Triton's own launcher must do it."""
        stream = stream_of(self._device)
        if stream is None or is_observed():
            return False
        values = self._values.copy()
        addresses = [tensor.data_ptr() for tensor in tensors]
        if not aligned(addresses):
            return False
        values[: self._operands] = addresses
        tensors += [None] * (self._slots - self._operands)
        for slot, make in self._made:
            tensors[slot] = tensor = make()
            values[slot] = tensor.data_ptr()
        if self._workspace is not None:
            workspace = self._workspace()
            begin = workspace.data_ptr()
            for slot, offset in self._pieces:
                values[slot] = begin + offset
        for slot, whole, offset in self._parts:
            values[slot] = values[whole] + offset
        for part, rows in self._views:
            tensors[part.slot] = tensors[part.whole][part.site].view(rows, -1)
        for start, arguments, out in self._steps:
            if arguments is not None:
                start(stream, arguments(values))
            else:
                start(tensors)
                values[out] = tensors[out].data_ptr()
        return True


def _maker(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Callable[[], Tensor]:
    """Allocates a contiguous tensor; by `empty_strided`, which takes a third of the time that `empty` does."""
    strides = tuple(prod(shape[at + 1 :]) for at in range(len(shape)))
    return partial(torch.empty_strided, shape, strides, dtype=dtype, device=device)


def _laid_out(pieces: Sequence[Buffer], shapes: Mapping[int, tuple[int, ...]]) -> tuple[list[tuple[int, int]], int]:
    """Where in one workspace each begins, and the bytes of all."""
    places, size = [], 0
    for buffer in pieces:
        places.append((buffer.slot, size))
        size += -(-prod(shapes[buffer.slot]) * buffer.dtype.itemsize // _PIECE) * _PIECE
    return places, size


def _steps(
    call: Call, compiled: Sequence[Any], rows: int, device: torch.device
) -> tuple[list[int], list[tuple[Any, Any, int]]]:
    """What `values` begins as, and the steps: (start, pick of its arguments, -1), or (operator, None, what it makes).

    The numbers that kernels take stand behind the addresses, so that one pick gives a kernel's arguments.
    """
    named, places = call.sizes(rows), {}
    values = [0] * len(call.names)
    kernels = iter(compiled)
    steps: list[tuple[Any, Any, int]] = []
    for step in call.steps:
        if not isinstance(step, Launch):
            steps.append((step, None, step.out))
            continue
        at = []
        for argument in step.arguments:
            if isinstance(argument, Slot):
                at.append(argument.index)
                continue
            number = named[argument] if isinstance(argument, str) else argument
            if number not in places:
                places[number] = len(values)
                values.append(number)
            at.append(places[number])
        start = starter(next(kernels), grid_of(step.kernel, rows, device), step.kernel.descriptors)
        steps.append((start, itemgetter(*at), -1))
    return values, steps
