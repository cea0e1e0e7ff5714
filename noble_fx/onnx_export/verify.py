"""The file against PyTorch, at the example's sizes and at others.

Every dynamic size is one symbol of the exported program, so a case is a value for each symbol: 1, one less, one more,
twice as many. ONNX Runtime runs the file; where it has no kernel for a dtype on the CPU (bfloat16), the reference
evaluator of ONNX does, with products in float32, and the report says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from noble_fx.captures.torch_export import quiet, user_inputs
from noble_fx.errors import ExportError
from noble_fx.onnx_export.model_file import shape_text
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
    checked: dict[str, float] = {}
    scale = 1.0
    for case in _cases(args, kwargs, program, ranged):
        shown = shape_text(case)
        if shown in checked:
            continue
        try:
            with quiet():  # a captured graph prints where a size does not fit it, besides raising
                truth = model(*case[0], **case[1])
        except Exception:
            if not checked:
                raise
            continue  # the model itself does not take this size
        tensors = [leaf for leaf in pytree.tree_leaves(case) if isinstance(leaf, Tensor)]
        checked[shown], largest = _difference(truth, run(tensors))
        scale = max(scale, largest)
    worst = max(checked.values(), key=lambda error: float("inf") if error != error else error)
    return Verification(worst, TOLERANCE[dtype] * (scale if dtype in _RELATIVE else 1), tuple(checked), by)


def _runner(path: Path) -> tuple[Callable[[list[Tensor]], list[Tensor]], str]:
    try:
        onnx_model = OnnxModel(path, device="cpu")
    except MissingKernel as missing:
        return _reference(path), f"the reference evaluator of ONNX ({missing})"

    def run(tensors: list[Tensor]) -> list[Tensor]:
        out = onnx_model(*tensors)
        return [out] if isinstance(out, Tensor) else list(out)

    return run, "ONNX Runtime"


def _reference(path: Path) -> Callable[[list[Tensor]], list[Tensor]]:
    """ONNX's own evaluator; products of low-precision matrices in float32, as every runtime accumulates them."""
    import ml_dtypes
    import numpy
    from onnx.reference import ReferenceEvaluator
    from onnx.reference.op_run import OpRun

    class MatMul(OpRun):
        def _run(self, a: Any, b: Any) -> Any:
            return (numpy.matmul(_wide(a), _wide(b)).astype(a.dtype),)

    class Gemm(OpRun):
        def _run(self, a: Any, b: Any, c: Any = None, alpha: Any = 1, beta: Any = 1, transA: Any = 0, transB: Any = 0):
            y = alpha * (_wide(a.T if transA else a) @ _wide(b.T if transB else b))
            return ((y if c is None else y + beta * _wide(c)).astype(a.dtype),)

    def _wide(array: Any) -> Any:
        return array.astype(numpy.float32) if array.dtype.itemsize < 4 else array

    evaluator = ReferenceEvaluator(str(path), new_ops=[MatMul, Gemm])

    def run(tensors: list[Tensor]) -> list[Tensor]:
        def array(tensor: Tensor) -> Any:
            if tensor.dtype == torch.bfloat16:
                return tensor.cpu().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
            return tensor.cpu().numpy()

        feed = dict(zip(evaluator.input_names, map(array, tensors), strict=True))
        return [
            torch.from_numpy(out.astype(numpy.float32)) if out.dtype == ml_dtypes.bfloat16 else torch.from_numpy(out)
            for out in cast(list[Any], evaluator.run(None, feed))
        ]

    return run


def _cases(args: Any, kwargs: Any, program: ExportedProgram, ranged: bool) -> Iterator[tuple[Any, Any]]:
    """The inputs as given, then at other sizes; every symbol changes alike, so inputs stay consistent."""
    yield args, kwargs
    leaves, spec = pytree.tree_flatten((args, kwargs))
    held = user_inputs(program)
    if len(held) != len(leaves):
        return
    free = {symbol for value in held for size in _dynamic(value).values() for symbol in size.free_symbols}
    symbols = {symbol: program.range_constraints.get(symbol) for symbol in free}
    current = _current(leaves, held)
    for change in (lambda n: 1, lambda n: n - 1, lambda n: n + 1, lambda n: 2 * n):
        sizes = {
            symbol: _within(change(current.get(symbol, 2)), r if ranged else None) for symbol, r in symbols.items()
        }
        yield pytree.tree_unflatten(
            [_resized(leaf, value, sizes) for leaf, value in zip(leaves, held, strict=True)], spec
        )


def _dynamic(value: Any) -> dict[int, Any]:
    """The symbolic size of every dynamic axis of a program's input."""
    shape: Any = value.shape if isinstance(value, Tensor) else ()
    return {axis: size.node.expr for axis, size in enumerate(shape) if not isinstance(size, int)}


def _current(leaves: list[Any], held: list[Any]) -> dict[Any, int]:
    """The example's own value of every symbol that is a size by itself."""
    found: dict[Any, int] = {}
    for leaf, value in zip(leaves, held, strict=True):
        if isinstance(leaf, Tensor):
            found |= {size: leaf.shape[axis] for axis, size in _dynamic(value).items() if size.is_symbol}
    return found


def _within(size: int, range_: Any) -> int:
    """A size of at least 1 and inside the range, whose ends may be infinite."""
    size = max(size, 1)
    if range_ is not None and bool(range_.lower > size):
        return int(range_.lower)
    return int(range_.upper) if range_ is not None and bool(range_.upper < size) else size


def _resized(leaf: Any, value: Any, sizes: dict[Any, int]) -> Any:
    """The example with its dynamic axes cut or repeated to the sizes."""
    for axis, size in _dynamic(value).items() if isinstance(leaf, Tensor) else ():
        wanted = int(size.subs(sizes))
        leaf = leaf.index_select(axis, torch.arange(wanted, device=leaf.device) % leaf.shape[axis])
    return leaf


def _difference(truth: Any, results: list[Tensor]) -> tuple[float, float]:
    """The largest difference, and the largest value it is seen against."""
    expected = [leaf for leaf in pytree.tree_leaves(truth) if isinstance(leaf, Tensor)]
    if not expected or len(expected) != len(results):
        raise ExportError(f"the model returns {len(expected)} tensors, but the file {len(results)}")
    error = scale = 0.0
    for one, other in zip(expected, results, strict=True):
        if one.shape != other.shape:
            raise ExportError(f"an output is {list(one.shape)} in PyTorch and {list(other.shape)} in the file")
        if one.numel():
            wide = one.double()
            # Where both say the same infinity (masked scores), there is no difference.
            gap = torch.where(wide == other.to(one.device).double(), 0.0, (wide - other.to(one.device).double()).abs())
            largest = gap.max().item()
            error = float("nan") if largest != largest else max(error, largest)  # a NaN must not pass as small
            finite = wide[wide.isfinite()]
            scale = max(scale, finite.abs().max().item() if finite.numel() else 0.0)
    return error, scale
