"""ONNX's own evaluator, for the dtypes in which ONNX Runtime has no kernels on the CPU (bfloat16, erf in float64).

Products of low-precision matrices are taken in float32, as every runtime accumulates them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor


def reference(path: Path) -> Callable[[list[Tensor]], list[Tensor]]:
    """The file as a function of tensors, one NumPy call a node: slow, and right in every dtype."""
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(str(path), new_ops=_products())

    def run(tensors: list[Tensor]) -> list[Tensor]:
        feed = dict(zip(evaluator.input_names, map(_array, tensors), strict=True))
        return [_tensor(output) for output in cast(list[Any], evaluator.run(None, feed))]

    return run


def _products() -> list[Any]:
    """The evaluator's operators that multiply matrices, in float32 inside."""
    import numpy
    from onnx.reference.op_run import OpRun

    def wide(array: Any) -> Any:
        return array.astype(numpy.float32) if array.dtype.itemsize < 4 else array

    class MatMul(OpRun):
        def _run(self, a: Any, b: Any) -> Any:
            return (numpy.matmul(wide(a), wide(b)).astype(a.dtype),)

    class Gemm(OpRun):
        def _run(self, a: Any, b: Any, c: Any = None, alpha: Any = 1, beta: Any = 1, transA: Any = 0, transB: Any = 0):
            y = alpha * (wide(a.T if transA else a) @ wide(b.T if transB else b))
            return ((y if c is None else y + beta * wide(c)).astype(a.dtype),)

    return [MatMul, Gemm]


def _array(tensor: Tensor) -> Any:
    import ml_dtypes

    if tensor.dtype == torch.bfloat16:
        return tensor.cpu().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.cpu().numpy()


def _tensor(array: Any) -> Tensor:
    """The array as a tensor; torch takes bfloat16 from NumPy as its bits alone."""
    import ml_dtypes
    import numpy

    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(numpy.int16)).view(torch.bfloat16)
    return torch.from_numpy(numpy.asarray(array))
