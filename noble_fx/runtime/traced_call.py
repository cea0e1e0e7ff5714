"""A call while a graph is traced: its kernels become nodes of the graph, which Inductor compiles among its own.

No Python of this package then runs between them, and Inductor plans their memory and captures them in CUDA graphs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from noble_fx.codegen.plan import Plan
from noble_fx.runtime.call import Call, Launch, Slot
from noble_fx.runtime.launch import options_of
from noble_fx.runtime.load import load_kernel


def trace_call(
    plan: Plan,
    call: Call,
    operands: Mapping[str, Tensor],
    shapes: Mapping[str, Sequence[Any]],
) -> list[Tensor]:
    """The results, in the order of `call.results`; `shapes` are those that results shall have instead of [rows, n].

    Sizes may be symbols. Raises `KernelError` for a kernel that cannot be loaded.
    """
    x = operands["x"]
    numbers = call.sizes(x.shape[0])
    tensors: list[Any] = [operands[name] for name in call.operands] + [None] * (len(call.names) - len(operands))
    for buffer in call.buffers:
        shape = [numbers[size] if isinstance(size, str) else size for size in buffer.shape]
        tensors[buffer.slot] = torch.empty(shape, dtype=buffer.dtype, device=x.device)
    for part in call.parts:
        whole = tensors[part.whole][part.site]
        tensors[part.slot] = whole.view(-1, whole.shape[-1])
    for step in call.steps:
        if isinstance(step, Launch):
            _launch(plan, step, tensors, numbers)
        else:
            step(tensors)
    return [_shaped(tensors[slot], shapes.get(name)) for name, slot in call.results.items()]


def _launch(plan: Plan, step: Launch, tensors: Sequence[Any], numbers: Mapping[str, Any]) -> None:
    values = [
        tensors[value.index] if isinstance(value, Slot) else numbers[value] if isinstance(value, str) else value
        for value in step.arguments
    ]
    # The contraction of products and sums is Inductor's own setting, and the same as ours unless it is changed there.
    options = {name: value for name, value in options_of(step.kernel).items() if name != "enable_fp_fusion"}
    kernel: Any = torch.library.wrap_triton(load_kernel(plan, step.kernel))
    kernel[(step.kernel.programs(numbers["rows"]),)](*values, **options)


def _shaped(result: Tensor, shape: Sequence[Any] | None) -> Tensor:
    """[rows, n] as [.., n], and nobody's view: that of an autograd function could not be changed in place."""
    return result if shape is None else torch.ops.aten._unsafe_view(result, shape)
