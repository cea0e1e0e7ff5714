"""One launch of a generated kernel: its file loaded, its arguments in order, its grid; which refusals are no faults.

x_ptr             the tensor "x"
weight_stride_0   the stride of the tensor "weight" along axis 0
rows, programs    numbers
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from noble_fx.codegen.kernel import Kernel
from noble_fx.codegen.plan import Plan
from noble_fx.codegen.report.resources import FP_FUSION
from noble_fx.errors import KernelError
from noble_fx.runtime.compiled import lent_memory
from noble_fx.runtime.load import load_kernel


def launch(plan: Plan, kernel: Kernel, rows: int, tensors: Mapping[str, Tensor], **numbers: int) -> None:
    """Run `kernel` over `rows` rows, its arguments bound by their names; does nothing for no rows.

    Raises as `start` does, and `KernelError` for an argument that nothing is bound to.
    """
    if rows:
        values = [_value(argument.name, kernel, tensors, {"rows": rows, **numbers}) for argument in kernel.arguments]
        start(plan, kernel, rows, values)


def start(plan: Plan, kernel: Kernel, rows: int, arguments: Sequence[Any]) -> Any:
    """Run `kernel` over `rows` rows on the current stream of its tensors' device; what Triton compiled, if it did.

    Raises `KernelError` for a kernel that cannot run there; an error of the GPU itself stays what it is.
    """
    function = load_kernel(plan, kernel)
    device = next(argument for argument in arguments if isinstance(argument, Tensor)).device
    # Triton launches on the current device, which need not be the tensors'.
    run = function[(grid_of(kernel, rows, device),)]
    with torch.cuda.device(device if device.type == "cuda" else -1), _refusals(kernel, device):
        return (lent_memory(run) if kernel.descriptors else run)(*arguments, **options_of(kernel))


def grid_of(kernel: Kernel, rows: int, device: torch.device) -> int:
    """How many programs a launch starts: of a persistent kernel no more than there are multiprocessors."""
    return kernel.programs(rows, _multiprocessors(device) if kernel.persistent else None)


@functools.cache
def _multiprocessors(device: torch.device) -> int | None:
    return int(torch.cuda.get_device_properties(device).multi_processor_count) if device.type == "cuda" else None


def options_of(kernel: Kernel) -> dict[str, Any]:
    """How a kernel is compiled."""
    return {"num_warps": kernel.warps, "num_stages": kernel.stages, "enable_fp_fusion": FP_FUSION}


# What says that the device or its memory is in trouble, not that a kernel cannot be made: after an illegal address
# every later call fails too, and hiding the first would blame another.
_OF_THE_DEVICE = (MemoryError, torch.OutOfMemoryError, torch.AcceleratorError)
_BY_THE_DRIVER = "Triton Error ["  # how Triton's launchers begin what a driver says, "[CUDA]" or "[HIP]"


@contextmanager
def _refusals(kernel: Kernel, device: torch.device) -> Iterator[None]:
    """Turns whatever Triton raises where it cannot compile a kernel, interpret it, or fit it in, into a `KernelError`.

    Triton has many words for that (its own errors, those of LLVM, ptxas and the C compiler, failed assertions), so what
    is let through is what is known to be the device's.
    """
    try:
        yield
    except _OF_THE_DEVICE:
        raise
    except Exception as problem:
        if _BY_THE_DRIVER in str(problem) and not _still_works(device):
            raise
        words, *_ = [*str(getattr(problem, "error_message", None) or problem).strip().splitlines(), ""]
        raise KernelError(f"{kernel.name} cannot run here: {type(problem).__name__}: {words}") from problem


def _still_works(device: torch.device) -> bool:
    """Whether the device answers after a driver refused a kernel: a binary for another GPU, too many registers, an old
    driver. After an illegal address it does not, and while a graph is captured it may not be asked."""
    if device.type != "cuda" or torch.cuda.is_current_stream_capturing():
        return False
    try:
        torch.cuda.synchronize(device)
    except Exception:
        return False
    return True


def _value(name: str, kernel: Kernel, tensors: Mapping[str, Tensor], numbers: Mapping[str, int]) -> Any:
    tensor, stride, axis = name.rpartition("_stride_")
    try:
        if name.endswith("_ptr"):
            return tensors[name.removesuffix("_ptr")]
        return tensors[tensor].stride(int(axis)) if stride else numbers[name]
    except KeyError as missing:
        raise KernelError(f"{kernel.name} needs {missing}, for its argument {name!r}; please report it") from None
