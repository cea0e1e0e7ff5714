"""A model as one exported program, ready for the ONNX exporter.

    model --torch.export--> noble_fx::linear nodes --passes "export"--> joined_up --decompositions--> aten
          --passes "rows"--> aten, products of rows

The passes run on the program's own graph module, which is then exported once more.
"""

from __future__ import annotations

import inspect
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, TensorArgument
from torch.utils import _pytree as pytree

from noble_fx.captures.export import at_least_two, dynamic_axes
from noble_fx.captures.forward_signature import arguments_named
from noble_fx.errors import ExportError
from noble_fx.onnx_export.operators import REWRITTEN
from noble_fx.ops.inference import DECOMPOSITIONS
from noble_fx.passes.history import Step
from noble_fx.passes.pipeline import PIPELINES
from noble_fx.passes.rule import run_passes

# What an exporter's error means where dynamic_shapes is to blame.
_SHAPES = ("dynamic_shapes", "onstraint", "dynamic dim", "marked as dynamic", "Dim.")


def capture(model: nn.Module, args: Any, kwargs: Any, dynamic_shapes: Any) -> ExportedProgram:
    """`model` as it stands, exported from example inputs; batch and sequence dynamic unless `dynamic_shapes` says else.

    Raises `ExportError` with the first cause, and for a model that returns anything but tensors.
    """
    if not any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves((args, kwargs))):
        raise ExportError("export_onnx needs example inputs; pass args=(x, …) or kwargs={'input_ids': …}")
    given = dynamic_shapes
    _check_axes(model, args, kwargs, given)
    if dynamic_shapes is None:
        args, kwargs = pytree.tree_map_only(Tensor, at_least_two, (args, kwargs))
        dynamic_shapes = _by_argument(model, *pytree.tree_map(_auto_shape, (args, kwargs)))
    try:
        with quiet(), arguments_named(model, kwargs):
            program = torch.export.export(model, args, kwargs, dynamic_shapes=dynamic_shapes, strict=False)
    except Exception as error:
        if given is not None and any(word in f"{type(error).__name__}: {error}" for word in _SHAPES):
            raise _misfit(first_line(error)) from error
        raise cannot_export(error) from error
    _check_outputs(program)
    return program


def _check_axes(model: nn.Module, args: Any, kwargs: Any, dynamic_shapes: Any) -> None:
    """torch.export passes over an axis that a tensor does not have, and the size that was meant stays fixed."""
    for name, tensor, axes in _given_axes(model, args, kwargs, dynamic_shapes):
        for axis in axes:
            if not isinstance(axis, int) or not 0 <= axis < tensor.ndim:
                raise _misfit(f"{name!r} has {tensor.ndim} dimensions, and axis {axis!r} is none of them")


def size_names(model: nn.Module, args: Any, kwargs: Any, dynamic_shapes: Any) -> dict[str, dict[int, str]]:
    """What the caller called the dynamic sizes (`Dim("rows")`), by argument and axis."""
    return {
        name: {axis: dim.__name__ for axis, dim in axes.items() if isinstance(dim, Dim)}
        for name, _, axes in _given_axes(model, args, kwargs, dynamic_shapes)
    }


def _given_axes(model: nn.Module, args: Any, kwargs: Any, dynamic_shapes: Any) -> Iterator[tuple[str, Tensor, Any]]:
    """Each argument that is a tensor, with its axes in `dynamic_shapes`."""
    named = _by_argument(model, args, kwargs)
    by_name = isinstance(dynamic_shapes, dict)
    shapes = dynamic_shapes if by_name else dict(zip(named, dynamic_shapes or (), strict=False))
    for name, axes in shapes.items():
        if isinstance(axes, dict) and isinstance(named.get(name), Tensor):
            yield name, named[name], axes


def _misfit(cause: str) -> ExportError:
    return ExportError(
        f"dynamic_shapes does not fit the model or its example inputs: {cause}; leave it out to have it inferred"
    )


def without_cache(model: nn.Module, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments with `use_cache=False` where forward has such one: an ONNX file returns tensors, not a cache."""
    if "use_cache" not in inspect.signature(model.forward).parameters:
        return kwargs
    if kwargs.get("use_cache"):
        raise ExportError("use_cache=True asks for a key–value cache, and a model is exported without one")
    return {**kwargs, "use_cache": False}


def cannot_export(error: BaseException) -> ExportError:
    """The exporter's failure in one line, by its first cause: what is raised last is advice of several pages."""
    while error.__cause__ is not None:
        error = error.__cause__
    return ExportError(f"the model cannot be exported: {type(error).__name__}: {first_line(error)}")


def first_line(error: BaseException) -> str:
    """What an exception says, without the pages that follow."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _check_outputs(program: ExportedProgram) -> None:
    for at, spec in enumerate(program.graph_signature.output_specs):
        constant = isinstance(spec.arg, ConstantArgument)
        if isinstance(spec.arg, TensorArgument) or (constant and spec.arg.value is None):
            continue
        shown = f"the constant {spec.arg.value!r}" if constant else "a number computed from sizes"
        raise ExportError(
            f"output {at} of the model is {shown}, and an ONNX file returns tensors alone; wrap the model in one that "
            f"returns its tensors"
        )


def _auto_shape(leaf: Any) -> Any:
    return dict.fromkeys(dynamic_axes(leaf), Dim.AUTO) if isinstance(leaf, Tensor) else None


def _by_argument(model: nn.Module, args: Any, kwargs: Any) -> dict[str, Any]:
    names = list(inspect.signature(model.forward).parameters)
    return {**dict(zip(names, args, strict=False)), **kwargs}


# --- passes ----------------------------------------------------------------------------------------------------------


def rewrite(program: ExportedProgram, pipeline: str) -> tuple[ExportedProgram, list[Step]]:
    """The program after one of the pipelines for an export, and what its passes did."""
    passes = PIPELINES[pipeline]
    if not passes.applies(program.graph_module):
        return program, []
    module: Any = program.module(check_guards=False)
    steps = run_passes(module, passes)
    if all(step.skipped for step in steps):
        return program, steps
    args, kwargs = program.example_inputs
    with quiet():
        again = torch.export.export(module, args, kwargs, dynamic_shapes=_same_shapes(program), strict=False)
    return again, steps


def lower(program: ExportedProgram) -> ExportedProgram:
    """The program in aten operators, its changes of shape merged."""
    with quiet():
        program = program.run_decompositions({**DECOMPOSITIONS, **REWRITTEN})
        run_passes(program.graph_module, PIPELINES["rows"])
        program.graph_module.graph.eliminate_dead_code()
    return program


def user_inputs(program: ExportedProgram) -> list[Any]:
    """The example values that the program holds for its own inputs, flat; dynamic sizes are symbols."""
    specs = program.graph_signature.input_specs
    nodes = [node for node in program.graph.nodes if node.op == "placeholder"]
    return [n.meta.get("val") for n, s in zip(nodes, specs, strict=True) if s.kind is InputKind.USER_INPUT]


def _same_shapes(program: ExportedProgram) -> Any:
    """`dynamic_shapes` for the program's module: dynamic where the program is."""
    leaves = [
        {axis: Dim.AUTO for axis, size in enumerate(value.shape) if not isinstance(size, int)}
        if isinstance(value, Tensor)
        else None
        for value in user_inputs(program)
    ]
    args, kwargs = pytree.tree_unflatten(leaves, program.call_spec.in_spec)
    return {**dict(zip(_names(program), args, strict=False)), **kwargs} if kwargs else tuple(args)


def _names(program: ExportedProgram) -> list[str]:
    module: Any = program.module(check_guards=False)
    return list(inspect.signature(module.forward).parameters)


@contextmanager
def quiet() -> Iterator[None]:
    """The exporters print their progress and warn about their own internals; what matters is in the report."""
    names = ("torch.onnx", "onnxscript", "onnx_ir", "torch.fx.experimental.symbolic_shapes", "torch.export")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
