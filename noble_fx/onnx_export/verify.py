"""The file against the model as it is, at the example's sizes and at others.

Each case runs on a copy of its own, with what the caller gave: a model that changes its buffers starts every time from
those that are in the file. Where a dtype is asked for, the file takes the same inputs in that dtype. ONNX Runtime runs
the file; where it has no kernel for a dtype on the CPU, the reference evaluator of ONNX does, and the verification says
so. A file has no complex numbers: there they are pairs in a last dimension, as in `torch.view_as_real`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from noble_fx.captures.torch_export import first_line, quiet
from noble_fx.errors import ExportError
from noble_fx.onnx_export.cases import cases, shape_text
from noble_fx.onnx_export.prepare import example_inputs, frozen_copy
from noble_fx.onnx_export.reference import reference
from noble_fx.onnx_export.session import MissingKernel, OnnxModel
from noble_fx.onnx_export.tolerance import Tolerance

Copies = Callable[[torch.dtype | None], nn.Module]  # a fresh copy of the model in a dtype


@dataclass(frozen=True)
class Verification:
    """The difference that comes nearest to what it may be, the shapes that were compared, and what ran the file."""

    error: float
    tolerance: float
    checked: tuple[str, ...]
    by: str


def verify(
    model: nn.Module,
    path: Path,
    given: Any,
    program: ExportedProgram,
    tolerances: Sequence[Tolerance],
    dtype: torch.dtype | None = None,
    ranged: bool = False,
    shared: bool = True,
) -> Verification:
    """Run `model` and the file on the same inputs; `ranged`: keep sizes in the ranges of the program's symbols.

    `shared`: copies of the model may share the memory of its parameters, since no call changes any.
    """
    run, by = _runner(path)
    copies = partial(frozen_copy, model, shared=shared)
    checked: list[str] = []
    worst = (0.0, max((t.value for t in tolerances), default=0.0))
    for case in cases(given[0], given[1], program, ranged):
        shapes = shape_text(case)
        if shapes in checked:
            continue
        truth = _truth(copies, case, dtype, needed=not checked)
        if truth is None:
            continue
        results = run(_flat(example_inputs(case, dtype)))
        _check_form(truth, results, dtype)
        checked.append(shapes)
        for tensor, result, tolerance in zip(truth, results, tolerances, strict=True):
            error, scale = difference(tensor, result)
            worst = max(worst, (error, tolerance.at(scale)), key=_share)
    return Verification(*worst, tuple(checked), by)


def _share(pair: tuple[float, float]) -> float:
    """How much of what is allowed a difference is; NaN is more than any number."""
    error, tolerance = pair
    return float("inf") if error != error else error / tolerance if tolerance else error and float("inf")


def _truth(copies: Copies, case: tuple[Any, Any], dtype: torch.dtype | None, needed: bool) -> list[Tensor] | None:
    """The tensors that the model returns; None where it does not take this size itself, an error where it must.

    Where a dtype is asked for, what is chosen by comparing rounded numbers (an argmax, a mask) is that of the model in
    this dtype.
    """
    truth = _returned(copies, case, None, needed)
    if dtype is None or truth is None or all(tensor.is_floating_point() for tensor in truth):
        return truth
    rounded = _returned(copies, case, dtype, needed)
    return rounded and [t if t.is_floating_point() else r for t, r in zip(truth, rounded, strict=True)]


def _returned(copies: Copies, case: tuple[Any, Any], dtype: torch.dtype | None, needed: bool) -> list[Tensor] | None:
    args, kwargs = pytree.tree_map_only(Tensor, torch.clone, case) if dtype is None else example_inputs(case, dtype)
    try:
        with quiet():  # a captured graph prints where a size does not fit it, besides raising
            return _flat(copies(dtype)(*args, **kwargs))
    except Exception as error:
        if not needed:
            return None
        where = "" if dtype is None else f" in {str(dtype).removeprefix('torch.')}"
        remedy = "correct them" if dtype is None else "pass another dtype"
        raise ExportError(
            f"the model fails on its example inputs{where}, and there is nothing to compare the file with: "
            f"{type(error).__name__}: {first_line(error)}; {remedy}, or pass verify=False"
        ) from error


def _flat(tree: Any) -> list[Tensor]:
    """The tensors in a call or in what it returned, as a file has them."""
    tensors = [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]
    return [torch.view_as_real(t.resolve_conj()) if t.is_complex() else t for t in tensors]


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


def _check_form(expected: list[Tensor], results: list[Tensor], dtype: torch.dtype | None) -> None:
    """Raises `ExportError` where the file returns other tensors: in number, shape or dtype."""
    if not expected or len(expected) != len(results):
        raise ExportError(f"the model returns {len(expected)} tensors, but the file {len(results)}")
    for tensor, result in zip(expected, results, strict=True):
        if tensor.shape != result.shape:
            raise ExportError(f"an output is {list(tensor.shape)} in PyTorch and {list(result.shape)} in the file")
        asked = dtype is not None and tensor.is_floating_point() and result.is_floating_point()
        if tensor.dtype != result.dtype and not asked:
            raise ExportError(f"an output is {tensor.dtype} in PyTorch and {result.dtype} in the file")


def difference(tensor: Tensor, result: Tensor) -> tuple[float, float]:
    """The largest difference and the largest value; NaN where either side has one alone.

    Of integers and truth values it is the share of entries that differ: those which hang on a rounded number may.
    """
    if not tensor.numel():
        return 0.0, 0.0
    result = result.to(tensor.device)
    if not tensor.is_floating_point():
        return (tensor != result).double().mean().item(), 0.0
    wide, other = tensor.double(), result.double()
    # Where both say the same infinity (masked scores), there is no difference.
    error = torch.where(wide == other, 0.0, (wide - other).abs()).max().item()
    finite = wide[wide.isfinite()]
    return error, finite.abs().max().item() if finite.numel() else 0.0
