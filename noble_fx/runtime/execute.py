"""A call on tensors: everything that sizes and strides decide is resolved once, and a call then is a walk over slots.

The first run goes through Triton's own launcher, which compiles. What it compiled is kept, and from then on each kernel
is started by its compiled launcher, with addresses instead of tensors (`bound_call.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from noble_fx.codegen.plan import Plan
from noble_fx.runtime.bound_call import BoundCall, aligned
from noble_fx.runtime.call import Call, Launch, Slot
from noble_fx.runtime.compiled import can_start
from noble_fx.runtime.launch import start
from noble_fx.torch_state import below_views

Prepare = Callable[[Tensor], Tensor]


class Executor:
    """One call for operands of one layout and one number of rows."""

    def __init__(
        self,
        plan: Plan,
        call: Call,
        rows: int,
        device: torch.device,
        prepare: Sequence[tuple[int, Prepare]] = (),
        shapes: Mapping[str, Sequence[int]] | None = None,
    ):
        """`prepare` lays operands out; `shapes` are those that results shall have instead of [rows, n]."""
        self._plan, self._call, self._rows, self._device = plan, call, rows, device
        self._prepare = tuple(prepare)
        self._results = tuple(call.results.values())
        self._numbers = call.sizes(rows)
        self._shapes = {
            buffer.slot: tuple(self._numbers[size] if isinstance(size, str) else size for size in buffer.shape)
            for buffer in call.buffers
        }
        wanted = {call.results[name]: tuple(shape) for name, shape in (shapes or {}).items() if name in call.results}
        # What kernels alone touch may have any shape; what PyTorch makes or reads is [rows, n] until the end.
        free = self._shapes.keys() - call.seen_by_pytorch()
        self._shapes |= {slot: shape for slot, shape in wanted.items() if slot in free}
        self._views = [(slot, shape) for slot, shape in wanted.items() if self._shapes.get(slot) != shape]
        self._bound: BoundCall | None = None

    def __call__(self, operands: Sequence[Tensor]) -> list[Tensor]:
        """The results, in the order of `call.results`."""
        tensors: list[Any] = [*operands]
        for at, prepare in self._prepare:
            tensors[at] = prepare(tensors[at])
        if self._bound is None or not self._bound.run(tensors):
            self._run(tensors)
        if self._views:
            with below_views():  # results are nobody's views
                for slot, shape in self._views:
                    tensors[slot] = tensors[slot].view(shape)
        return [tensors[slot] for slot in self._results]

    def _run(self, tensors: list[Any]) -> None:
        """By Triton's own launcher, which compiles what is not compiled yet."""
        call = self._call
        tensors += [None] * (len(call.names) - len(tensors))
        for buffer in call.buffers:
            tensors[buffer.slot] = torch.empty(self._shapes[buffer.slot], dtype=buffer.dtype, device=self._device)
        for part in call.parts:
            tensors[part.slot] = tensors[part.whole][part.site].view(self._rows, -1)
        everything_aligned, compiled = True, []
        for step in call.steps:
            if isinstance(step, Launch):
                values = [self._value(tensors, argument) for argument in step.arguments]
                everything_aligned &= aligned([value.data_ptr() for value in values if isinstance(value, Tensor)])
                compiled.append(start(self._plan, step.kernel, self._rows, values))
            else:
                step(tensors)
        if self._bound is None and everything_aligned and all(map(can_start, compiled)):
            self._bound = BoundCall(call, compiled, self._rows, self._shapes, self._device)

    def _value(self, tensors: list[Any], argument: Slot | int | str) -> Any:
        if isinstance(argument, Slot):
            return tensors[argument.index]
        return self._numbers[argument] if isinstance(argument, str) else argument
