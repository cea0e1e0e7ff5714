"""Export a model with its branches to ONNX, and check the file against PyTorch before it takes its place.

    model --torch.export--> program --eager maths for noble_fx::linear--> torch's ONNX exporter --> file, verified

The live model is not changed, and a file that fails its check is never put at `path`.
"""

from __future__ import annotations

import copy
import inspect
import io
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn
from torch.export import Dim
from torch.utils import _pytree as pytree

from noble_fx.capture import modes_restored
from noble_fx.capture_export import at_least_two, dynamic_axes
from noble_fx.errors import ConfigError, ExportError
from noble_fx.files import staged
from noble_fx.runtime import DECOMPOSITIONS
from noble_fx.runtime.onnx_model import OnnxModel
from noble_fx.transform import named_branches, sites

_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 2e-2}
METADATA = "noble_fx"


@dataclass(frozen=True)
class ExportReport:
    """What was written and how close ONNX Runtime comes to PyTorch; `str()` is a table."""

    path: Path
    opset: int
    nodes: int
    size: int  # bytes, external data included
    inputs: dict[str, str]  # name -> dtype and shape, dynamic sizes by name
    outputs: dict[str, str]
    largest_error: float | None  # None when verify=False
    tolerance: float
    checked: tuple[str, ...]  # shapes that were compared

    def __str__(self) -> str:
        table = Table(box=None, show_header=False, pad_edge=False)
        error = "not verified" if self.largest_error is None else f"{self.largest_error:.2e} (≤ {self.tolerance:g})"
        rows = {
            "file": f"{self.path} ({self.size / 1e6:.2f} MB)",
            "opset": str(self.opset),
            "nodes": str(self.nodes),
            "inputs": ", ".join(f"{k} {v}" for k, v in self.inputs.items()),
            "outputs": ", ".join(f"{k} {v}" for k, v in self.outputs.items()),
            "largest error": error,
            "compared at": "; ".join(self.checked) or "–",
        }
        for name, value in rows.items():
            table.add_row(name, Text(value))
        text = io.StringIO()
        Console(file=text, width=110, color_system=None).print(table)
        return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def export_onnx(
    model: nn.Module,
    args: tuple[Any, ...] = (),
    path: str | Path = "model.onnx",
    kwargs: dict[str, Any] | None = None,
    dynamic_shapes: Any = None,
    dtype: torch.dtype | None = None,
    opset: int | None = None,
    verify: bool = True,
    overwrite: bool = False,
) -> ExportReport:
    """Write `model` in eval mode to `path`; batch and sequence sizes stay dynamic unless `dynamic_shapes` says else.

    `args` and `kwargs` are example inputs. The file is run with ONNX Runtime and compared at several sizes; raises
    `ExportError` when the model cannot be exported, a result is too far off, or `path` exists or cannot be written.
    """
    _need_onnx()
    path, kwargs = Path(path), dict(kwargs or {})
    dtype = dtype or _model_dtype(model)
    if dtype not in _TOLERANCE:
        known = ", ".join(str(d).removeprefix("torch.") for d in _TOLERANCE)
        raise ExportError(f"dtype={dtype} cannot be exported and checked on the CPU; use one of {known}")
    if dtype != _model_dtype(model):
        model = copy.deepcopy(model).to(dtype)
    args, kwargs = pytree.tree_map_only(Tensor, lambda t: _example(t, dtype), (args, kwargs))
    with staged(path, ExportError, overwrite) as work, modes_restored(model), torch.no_grad():
        model.eval()
        program = _to_onnx(model, args, kwargs, dynamic_shapes, opset)
        _strip(program.model.graph)
        program.model.metadata_props[METADATA] = _metadata(model)
        made = work / path.name
        program.save(str(made))
        checked, error = _verify(model, made, args, kwargs, dynamic_shapes) if verify else ((), None)
        tolerance = _TOLERANCE[dtype]
        if error is not None and not error <= tolerance:
            raise ExportError(
                f"ONNX Runtime differs from PyTorch by {error:.2e} (allowed: {tolerance:g}); {path} was not written"
            )
        size = sum(file.stat().st_size for file in work.iterdir())
    graph = program.model.graph
    return ExportReport(
        path=path,
        opset=program.model.opset_imports[""],
        nodes=sum(1 for _ in graph),
        size=size,
        inputs={value.name: f"{value.dtype} {value.shape}" for value in graph.inputs},
        outputs={value.name: f"{value.dtype} {value.shape}" for value in graph.outputs},
        largest_error=error,
        tolerance=tolerance,
        checked=checked,
    )


def _example(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """An input of its own: torch.export guards on the strides of a view, which a file does not have."""
    tensor = tensor.to(dtype) if tensor.is_floating_point() else tensor
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def _need_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ExportError(f'export_onnx needs {error.name}: pip install "noble-fx[onnx]"') from None


def _model_dtype(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def _metadata(model: nn.Module) -> str:
    branches = named_branches(model)
    config: dict[str, Any] = {}
    if branches:
        try:
            config = next(iter(branches.values())).config.to_dict()
        except ConfigError:  # a callable cannot be written; the file works without it
            config = {"act": next(iter(branches.values())).label}
    chosen = [site.to_dict() for site in sites(model) if site.selected]
    return json.dumps({"config": config, "sites": chosen, "torch": torch.__version__})


def _to_onnx(model: nn.Module, args: Any, kwargs: Any, dynamic_shapes: Any, opset: int | None) -> Any:
    if not pytree.tree_leaves((args, kwargs)):
        raise ExportError("export_onnx needs example inputs; pass args=(x, …) or kwargs={'input_ids': …}")
    if dynamic_shapes is None:
        args, kwargs = pytree.tree_map_only(Tensor, at_least_two, (args, kwargs))
        shapes = pytree.tree_map(_auto_shape, (args, kwargs))
        dynamic_shapes = _by_argument(model, *shapes)
    try:
        with _quiet():
            program = torch.export.export(model, args, kwargs, dynamic_shapes=dynamic_shapes, strict=False)
            program = program.run_decompositions(dict(DECOMPOSITIONS))
            return torch.onnx.export(program, opset_version=opset, dynamo=True, verbose=False)
    except Exception as error:
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ExportError(f"the model cannot be exported: {type(error).__name__}: {first}") from error


def _strip(graph: Any) -> None:
    """Drop the exporter's notes on every node and value (stack traces of this machine), a third of a small file."""
    for node in graph:
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*graph.inputs, *graph.initializers.values()):
        value.metadata_props.clear()


def _auto_shape(leaf: Any) -> Any:
    return dict.fromkeys(dynamic_axes(leaf), Dim.AUTO) if isinstance(leaf, Tensor) else None


def _by_argument(model: nn.Module, args: Any, kwargs: Any) -> dict[str, Any]:
    names = list(inspect.signature(model.forward).parameters)
    return {**dict(zip(names, args, strict=False)), **kwargs}


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints its progress and warns about its own internals; what matters is in the report."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _verify(model: nn.Module, path: Path, args: Any, kwargs: Any, dynamic_shapes: Any) -> tuple[tuple[str, ...], float]:
    """Compare at the given sizes, and at smaller and larger ones where they are dynamic."""
    onnx_model = OnnxModel(path, device="cpu")
    cases = [(args, kwargs)]
    if dynamic_shapes is None:
        cases += [pytree.tree_map_only(Tensor, change, (args, kwargs)) for change in (at_least_two, _smaller)]
    checked: dict[str, float] = {}
    for case_args, case_kwargs in cases:
        tensors = [leaf for leaf in pytree.tree_leaves((case_args, case_kwargs)) if isinstance(leaf, Tensor)]
        shown = " × ".join(str(list(t.shape)) for t in tensors)
        if shown not in checked:
            checked[shown] = _difference(model(*case_args, **case_kwargs), onnx_model(*tensors))
    return tuple(checked), max(checked.values())


def _smaller(tensor: Tensor) -> Tensor:
    for axis in dynamic_axes(tensor):
        if tensor.shape[axis] > 2:
            tensor = tensor.narrow(axis, 0, tensor.shape[axis] - 1)
    return tensor


def _difference(truth: Any, found: Any) -> float:
    expected = [leaf for leaf in pytree.tree_leaves(truth) if isinstance(leaf, Tensor)]
    results = [found] if isinstance(found, Tensor) else list(found)
    if not expected or len(expected) != len(results):
        raise ExportError(f"the model returns {len(expected)} tensors, but the file {len(results)}")
    largest = 0.0
    for one, other in zip(expected, results, strict=True):
        if one.shape != other.shape:
            raise ExportError(f"an output is {list(one.shape)} in PyTorch and {list(other.shape)} in the file")
        if one.numel():
            gap = (one.double() - other.to(one.device).double()).abs().max().item()
            largest = float("nan") if gap != gap else max(largest, gap)  # a NaN must not pass as small
    return largest
