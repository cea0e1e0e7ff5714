"""One launch of a generated kernel: tensors and numbers bound to its arguments by name, its file loaded, its grid.

x_ptr             the tensor "x"
weight_stride_0   the stride of the tensor "weight" along axis 0
rows, programs    numbers
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from noble_fx.codegen.kernel import Kernel
from noble_fx.codegen.plan import Plan
from noble_fx.codegen.report.resources import FP_FUSION
from noble_fx.errors import KernelError
from noble_fx.runtime.load import load_kernel


def launch(plan: Plan, kernel: Kernel, rows: int, tensors: Mapping[str, Tensor], **numbers: int) -> None:
    """Run `kernel` over `rows` rows, on the current stream of the tensors' device; does nothing for no rows.

    Raises `KernelError` for an argument that nothing is bound to, and for a kernel that cannot run there; an error of
    the GPU itself stays what it is.
    """
    if not rows:
        return
    function = load_kernel(plan, kernel)
    arguments = [_value(argument.name, kernel, tensors, {"rows": rows, **numbers}) for argument in kernel.arguments]
    options = {"num_warps": kernel.warps, "num_stages": kernel.stages, "enable_fp_fusion": FP_FUSION}
    # Triton launches on the current device, which need not be the tensors'.
    with (
        torch.cuda.device_of(next(argument for argument in arguments if isinstance(argument, Tensor))),
        _refusals(kernel),
    ):
        function[(kernel.programs(rows),)](*arguments, **options)


# What says that the device or its memory is in trouble, not that a kernel cannot be made: after an illegal address
# every later call fails too, and hiding the first would blame another.
_OF_THE_DEVICE = (MemoryError, torch.OutOfMemoryError, torch.AcceleratorError)
_BY_THE_DRIVER = "Triton Error ["  # how Triton's launchers begin what a driver says, "[CUDA]" or "[HIP]"


@contextmanager
def _refusals(kernel: Kernel) -> Iterator[None]:
    """Turns whatever Triton raises where it cannot compile a kernel, interpret it, or fit it in, into a `KernelError`.

    Triton has many words for that (its own errors, those of LLVM, ptxas and the C compiler, failed assertions), so what
    is let through is what is known to be the device's.
    """
    try:
        yield
    except _OF_THE_DEVICE:
        raise
    except Exception as problem:
        if _BY_THE_DRIVER in str(problem):
            raise
        words, *_ = [*str(getattr(problem, "error_message", None) or problem).strip().splitlines(), ""]
        raise KernelError(f"{kernel.name} cannot run here: {type(problem).__name__}: {words}") from problem


def _value(name: str, kernel: Kernel, tensors: Mapping[str, Tensor], numbers: Mapping[str, int]) -> Any:
    tensor, stride, axis = name.rpartition("_stride_")
    try:
        if name.endswith("_ptr"):
            return tensors[name.removesuffix("_ptr")]
        return tensors[tensor].stride(int(axis)) if stride else numbers[name]
    except KeyError as missing:
        raise KernelError(f"{kernel.name} needs {missing}, for its argument {name!r}; please report it") from None
