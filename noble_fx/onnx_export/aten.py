"""`noble_fx.export`: the same way as to an ONNX file, ended at a program of ATen operators.

What is saved from it (`torch.export.save`) is loaded, compiled by AOTInductor or converted by other runtimes where
nobody has heard of this package.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from noble_fx.captures.torch_export import quiet, without_cache
from noble_fx.errors import ExportError, check_flag
from noble_fx.onnx_export.cases import cases, shape_text
from noble_fx.onnx_export.join import PIPELINES, check_join
from noble_fx.onnx_export.prepare import example_inputs, folded_copy, frozen_copy, given_inputs
from noble_fx.onnx_export.program import capture, named_arguments, rewrite
from noble_fx.onnx_export.request import check_values, checked_dtype
from noble_fx.onnx_export.tolerance import dtypes_in, tolerance_of
from noble_fx.onnx_export.unwrap import plain_model
from noble_fx.onnx_export.verify import difference
from noble_fx.ops.inference import DECOMPOSITIONS
from noble_fx.random_states import random_states_kept
from noble_fx.tracing_lock import tracing


def export(
    model: nn.Module,
    args: Any = (),
    kwargs: dict[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    dtype: torch.dtype | None = None,
    fold: bool = True,
    join: str | bool = False,
    verify: bool = True,
) -> ExportedProgram:
    """`model` in eval mode as an `ExportedProgram` of ATen operators alone, which needs no noble_fx where it runs.

    The settings are those of `export_onnx`. With `verify` the program is run and compared with `model` at several
    sizes. `model` is not changed. Raises `ExportError` where it cannot be exported or a result is too far off.
    """
    model = plain_model(model, "export")
    check_values(model)
    check_join(join)
    check_flag("fold", fold, ExportError)
    check_flag("verify", verify, ExportError)
    dtype = checked_dtype(dtype)
    args, kwargs = given_inputs(args, {} if kwargs is None else kwargs)
    named_arguments(model, args, kwargs)
    given = args, without_cache(model, kwargs, ExportError)
    args, kwargs = example_inputs(given, dtype)
    with tracing(), random_states_kept(), torch.no_grad():
        copied, _ = folded_copy(model, dtype, fold)
        captured = capture(copied, args, kwargs, dynamic_shapes)
        program, _ = rewrite(captured, PIPELINES[join])
        with quiet():
            program = program.run_decompositions(dict(DECOMPOSITIONS))
        if verify:
            _compare(model, program, given, dtype, dynamic_shapes is not None)
    return program


def _compare(model: nn.Module, program: ExportedProgram, given: Any, dtype: torch.dtype | None, ranged: bool) -> None:
    """Run both at the example's sizes and at others; raises `ExportError` where the program is too far off."""
    tolerance, seen = tolerance_of(dtypes_in(program)), set[str]()
    for case in cases(given[0], given[1], program, ranged):
        case = example_inputs(case, dtype)
        shapes = shape_text(case)
        if shapes in seen:
            continue
        try:
            with quiet():
                expected = _run(frozen_copy(model, dtype, shared=False), case)
        except Exception:
            if not seen:
                raise
            continue  # a size that the model itself does not take
        seen.add(shapes)
        pairs = zip(expected, _run(program.module(check_guards=False), case), strict=True)
        for error, scale in (difference(tensor, result) for tensor, result in pairs):
            if not error <= tolerance.at(scale):
                raise ExportError(
                    f"the program differs from the model by {error:.2e} at {shapes} (allowed: {tolerance.at(scale):g})"
                )


def _run(module: Any, case: Any) -> list[Tensor]:
    args, kwargs = pytree.tree_map_only(Tensor, torch.clone, case)
    return [leaf for leaf in pytree.tree_leaves(module(*args, **kwargs)) if isinstance(leaf, Tensor)]
