"""The file against PyTorch, at the example's sizes and at others.

ONNX Runtime runs the file; where it has no kernel for a dtype on the CPU, the reference evaluator of ONNX does, and the
verification says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from noble_fx.captures.torch_export import first_line, quiet
from noble_fx.errors import ExportError
from noble_fx.onnx_export.cases import cases, shape_text
from noble_fx.onnx_export.reference import reference
from noble_fx.onnx_export.session import MissingKernel, OnnxModel

# The largest difference allowed; relative to the largest value where a dtype keeps three digits or fewer.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
_RELATIVE = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Verification:
    """Largest difference and what it may be, the shapes that were compared, and what ran the file."""

    error: float
    tolerance: float
    checked: tuple[str, ...]
    by: str


def verify(
    model: nn.Module, path: Path, args: Any, kwargs: Any, program: ExportedProgram, dtype: torch.dtype, ranged: bool
) -> Verification:
    """Run `model` and the file on the same inputs; `ranged`: keep sizes in the ranges of the program's symbols."""
    run, by = _runner(path)
    errors: dict[str, float] = {}
    scale = 1.0
    for case in cases(args, kwargs, program, ranged):
        shapes = shape_text(case)
        if shapes in errors:
            continue
        truth = _truth(model, case, dtype, needed=not errors)
        if truth is None:
            continue
        tensors = [leaf for leaf in pytree.tree_leaves(case) if isinstance(leaf, Tensor)]
        errors[shapes], largest = difference(truth, run(tensors))
        scale = max(scale, largest)
    tolerance = TOLERANCE[dtype] * (scale if dtype in _RELATIVE else 1)
    return Verification(_worst(errors.values()), tolerance, tuple(errors), by)


def _truth(model: nn.Module, case: tuple[Any, Any], dtype: torch.dtype, needed: bool) -> list[Tensor] | None:
    """The tensors that the model returns; None where it does not take this size itself, an error where it must."""
    args, kwargs = case
    try:
        with quiet():  # a captured graph prints where a size does not fit it, besides raising
            returned = model(*args, **kwargs)
    except Exception as error:
        if not needed:
            return None
        raise ExportError(
            f"the model fails on its example inputs in {str(dtype).removeprefix('torch.')}, and there is nothing to "
            f"compare the file with: {type(error).__name__}: {first_line(error)}; pass another dtype, or verify=False"
        ) from error
    return [leaf for leaf in pytree.tree_leaves(returned) if isinstance(leaf, Tensor)]


def _runner(path: Path) -> tuple[Callable[[list[Tensor]], list[Tensor]], str]:
    """What runs the file, and its name."""
    try:
        onnx_model = OnnxModel(path, device="cpu")
    except MissingKernel as missing:
        return reference(path), f"the reference evaluator of ONNX ({missing})"

    def run(tensors: list[Tensor]) -> list[Tensor]:
        out = onnx_model(*tensors)
        return [out] if isinstance(out, Tensor) else list(out)

    return run, "ONNX Runtime"


def difference(expected: list[Tensor], results: list[Tensor]) -> tuple[float, float]:
    """The largest difference, and the largest value it is seen against; NaN where either side has one alone."""
    if not expected or len(expected) != len(results):
        raise ExportError(f"the model returns {len(expected)} tensors, but the file {len(results)}")
    errors, scale = [0.0], 0.0
    for tensor, result in zip(expected, results, strict=True):
        if tensor.shape != result.shape:
            raise ExportError(f"an output is {list(tensor.shape)} in PyTorch and {list(result.shape)} in the file")
        if tensor.numel():
            wide, other = tensor.double(), result.to(tensor.device).double()
            # Where both say the same infinity (masked scores), there is no difference.
            errors.append(torch.where(wide == other, 0.0, (wide - other).abs()).max().item())
            finite = wide[wide.isfinite()]
            scale = max(scale, finite.abs().max().item() if finite.numel() else 0.0)
    return _worst(errors), scale


def _worst(errors: Iterable[float]) -> float:
    """The largest, where a NaN is larger than any number."""
    return max(errors, key=lambda error: float("inf") if error != error else error)
