"""A model as one exported program, ready for the ONNX exporter.

    model --torch.export--> noble_fx::linear nodes --passes "export"--> joined_up --decompositions--> aten
          --passes "rows"--> aten, products of rows

The passes run on the program's own graph module, which is then exported once more.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import ConstantArgument, TensorArgument
from torch.utils import _pytree as pytree

from noble_fx.captures.torch_export import (
    at_least_two,
    automatic_shapes,
    blames_shapes,
    bound_arguments,
    export_program,
    first_cause,
    first_line,
    misfit,
    quiet,
    user_inputs,
)
from noble_fx.errors import ExportError
from noble_fx.onnx_export.operators import REWRITTEN
from noble_fx.ops.inference import DECOMPOSITIONS
from noble_fx.passes.history import Step
from noble_fx.passes.pipeline import PIPELINES
from noble_fx.passes.rule import run_passes


def capture(model: nn.Module, args: Any, kwargs: Any, dynamic_shapes: Any) -> ExportedProgram:
    """`model` as it stands, exported from example inputs; batch and sequence dynamic unless `dynamic_shapes` says else.

    Raises `ExportError` with the first cause, and for a model that returns anything but tensors.
    """
    _need_tensors(args, kwargs)
    automatic = dynamic_shapes is None
    if automatic:
        args, kwargs = at_least_two((args, kwargs))
        dynamic_shapes = automatic_shapes(named_arguments(model, args, kwargs))
    else:
        _check_axes(model, args, kwargs, dynamic_shapes)
    try:
        program = export_program(model, args, kwargs, dynamic_shapes)
    except Exception as error:
        if not automatic and blames_shapes(error):
            raise ExportError(misfit(first_line(error))) from error
        raise cannot_export(error) from error
    _check_outputs(program)
    return program


def _check_axes(model: nn.Module, args: Any, kwargs: Any, dynamic_shapes: Any) -> None:
    """torch.export passes over an axis that a tensor does not have, and the size that was meant stays fixed."""
    for name, tensor, axes in _given_axes(model, args, kwargs, dynamic_shapes):
        for axis in axes:
            if not isinstance(axis, int) or not 0 <= axis < tensor.ndim:
                raise ExportError(misfit(f"{name!r} has {tensor.ndim} dimensions, and axis {axis!r} is none of them"))


def size_names(model: nn.Module, args: Any, kwargs: Any, dynamic_shapes: Any) -> dict[str, dict[int, str]]:
    """What the caller called the dynamic sizes (`Dim("rows")`), by argument and axis."""
    return {
        name: {axis: dim.__name__ for axis, dim in axes.items() if isinstance(dim, Dim)}
        for name, _, axes in _given_axes(model, args, kwargs, dynamic_shapes)
    }


def _given_axes(model: nn.Module, args: Any, kwargs: Any, dynamic_shapes: Any) -> Iterator[tuple[str, Tensor, Any]]:
    """Each argument that is a tensor, with its axes in `dynamic_shapes`."""
    named = named_arguments(model, args, kwargs)
    by_name = isinstance(dynamic_shapes, dict)
    shapes = dynamic_shapes if by_name else dict(zip(named, dynamic_shapes or (), strict=False))
    for name, axes in shapes.items():
        if isinstance(axes, dict) and isinstance(named.get(name), Tensor):
            yield name, named[name], axes


def cannot_export(error: BaseException) -> ExportError:
    """The exporter's failure in one line, by its first cause: what is raised last is advice of several pages."""
    cause = first_cause(error)
    return ExportError(f"the model cannot be exported: {type(cause).__name__}: {first_line(cause)}")


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


def named_arguments(model: nn.Module, args: Any, kwargs: Any) -> dict[str, Any]:
    """Each argument of a call by its name; raises `ExportError` for one that `forward` does not take."""
    _need_tensors(args, kwargs)
    try:
        return bound_arguments(model, args, kwargs)
    except TypeError as error:
        signature = inspect.signature(model.forward)
        raise ExportError(
            f"the example inputs do not fit forward{signature}: {error}; correct args or kwargs"
        ) from None


def _need_tensors(args: Any, kwargs: Any) -> None:
    if not any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves((args, kwargs))):
        raise ExportError("an export needs example inputs; pass args=(x, …) or kwargs={'input_ids': …}")


# --- passes ----------------------------------------------------------------------------------------------------------


def rewrite(program: ExportedProgram, pipeline: str) -> tuple[ExportedProgram, list[Step]]:
    """The program after one of the pipelines for an export, and what its passes did."""
    passes = PIPELINES[pipeline]
    if not passes.applies(program.graph_module):
        return program, []
    module: Any = program.module(check_guards=False)
    steps = run_passes(module, passes)
    if all(step.skipped for step in steps):
        return program, list(steps)
    args, kwargs = program.example_inputs
    return export_program(module, args, kwargs, _same_shapes(program)), list(steps)


def lower(program: ExportedProgram) -> ExportedProgram:
    """The program in aten operators, its changes of shape merged."""
    with quiet():
        program = program.run_decompositions({**DECOMPOSITIONS, **REWRITTEN})
        run_passes(program.graph_module, PIPELINES["rows"])
        program.graph_module.graph.eliminate_dead_code()
    return program


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
