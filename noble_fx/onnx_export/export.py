"""Export a model with its branches to ONNX, and check the file against PyTorch before it takes its place.

    model --fold--> --torch.export--> program --passes--> program --torch.onnx--> file --checked, verified--> path

Everything happens on a copy, and a file that fails its check is never put at `path`. The steps are the files beside.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from noble_fx.captures.torch_export import quiet, without_cache
from noble_fx.errors import ExportError
from noble_fx.files import staged
from noble_fx.onnx_export import functions as onnx_functions
from noble_fx.onnx_export import model_file
from noble_fx.onnx_export.account import describe
from noble_fx.onnx_export.join import PIPELINES, chosen
from noble_fx.onnx_export.names import name_ends, name_sizes
from noble_fx.onnx_export.operators import translations
from noble_fx.onnx_export.prepare import example_inputs, folded_copy, given_inputs
from noble_fx.onnx_export.program import cannot_export, capture, lower, named_arguments, rewrite, size_names
from noble_fx.onnx_export.report import ExportReport, notes, report_of
from noble_fx.onnx_export.request import (
    check_flags,
    check_request,
    checked_dtype,
    checked_path,
    default_opset,
    dtypes_of,
    need_onnx,
)
from noble_fx.onnx_export.tolerance import dtypes_in, tolerances
from noble_fx.onnx_export.unwrap import plain_model
from noble_fx.onnx_export.verify import Verification
from noble_fx.onnx_export.verify import verify as compare
from noble_fx.passes.history import Step
from noble_fx.random_states import random_states_kept
from noble_fx.sites.from_file import METADATA
from noble_fx.torch_versions import onnx_library_read_once
from noble_fx.tracing_lock import tracing

__all__ = ["ExportReport", "export_onnx"]

STAGES = ("fold", "capture", "rewrite", "translate", "write", "verify")


def export_onnx(
    model: nn.Module,
    args: tuple[Any, ...] = (),
    path: str | os.PathLike[str] = "model.onnx",
    kwargs: dict[str, Any] | None = None,
    dynamic_shapes: Any = None,
    dtype: torch.dtype | None = None,
    opset: int | None = None,
    fold: bool = True,
    functions: bool = False,
    verify: bool | str = True,
    join: str | bool = "auto",
    overwrite: bool = False,
    progress: Callable[[str], None] = lambda stage: None,
) -> ExportReport:
    """Write `model` in eval mode to `path`; batch and sequence sizes stay dynamic unless `dynamic_shapes` says else.

    `args` and `kwargs` are example inputs. Dtypes are those of the model and of these inputs; `dtype` asks for all
    that is floating-point, inputs too, in another one. `fold` folds the constants of σ. `join="up"` makes W and U one
    matrix, so that y is written once; "down" makes W and D one, so that x is read once; False keeps all apart, as does
    a matrix that another product reads; "auto" takes what was measured to cost least, and the report says which.
    `functions` keeps each site one node with its maths in a function of the file (not joined: a box has the operands of
    the formula). The file is run and compared with `model` as it is, at several sizes; `verify="warn"` keeps a file
    that is too far off, with a warning, and `verify=False` does not look. `progress` is called with the name of each
    stage. What hands every call on to `model` (torch.compile, DataParallel, an averaged model) is taken off. `model`
    itself is never changed. Exports in several threads wait for one another.
    Raises `ExportError` when the model cannot be exported, a result is too far off, or `path` exists or cannot be
    written; nothing is left at `path` then.
    """
    need_onnx()
    model = plain_model(model)
    check_request(model, verify, join, opset)
    check_flags(progress, fold=fold, functions=functions, overwrite=overwrite)
    target, dtype = checked_path(path), checked_dtype(dtype)
    args, kwargs = given_inputs(args, {} if kwargs is None else kwargs)
    arguments = named_arguments(model, args, kwargs)
    given = args, without_cache(model, kwargs, ExportError)
    args, kwargs = example_inputs(given, dtype)
    with tracing(), staged(target, ExportError, overwrite) as work, random_states_kept(), torch.no_grad():
        progress("fold")
        copied, steps = folded_copy(model, dtype, fold)
        progress("capture")
        captured = capture(copied, args, kwargs, dynamic_shapes)
        progress("rewrite")
        way, joined = chosen(join, functions)
        program, rewritten, kinds = _rewritten(captured, PIPELINES[way], functions)
        steps += rewritten
        progress("translate")
        onnx_model = _translated(program, opset or default_opset(dtypes_in(program)), kinds)
        name_ends(onnx_model, captured)
        name_sizes(onnx_model, program, size_names(model, args, kwargs, dynamic_shapes))
        form = "one noble_fx::Linear node a site" if functions else "products of rows (Gemm) a site"
        onnx_model.metadata_props[METADATA] = describe(model, steps, form, dtypes_of(copied))
        progress("write")
        file = work / target.name
        model_file.write(onnx_model, file)
        model_file.check(file, onnx_model.opset_imports[""])
        verification = None
        if verify:
            progress("verify")
            ranged, shared = dynamic_shapes is not None, not program.graph_signature.parameters_to_mutate
            verification = compare(model, file, given, captured, tolerances(program), dtype, ranged, shared)
            _judge(verification, target, verify, dtype)
        size = sum(part.stat().st_size for part in work.iterdir())
    return report_of(onnx_model, target, size, verification, steps, joined, notes(program, arguments))


def _rewritten(program: ExportedProgram, pipeline: str, functions: bool) -> tuple[Any, list[Step], list[Any]]:
    """The program as the exporter takes it, what the passes did, and the kinds of node where each site is one."""
    try:
        program, steps = rewrite(program, pipeline)
        if not functions:
            return lower(program), steps, []
        program, kinds = onnx_functions.as_nodes(program)
        return program, steps, kinds
    except Exception as error:
        raise cannot_export(error) from error


def _translated(program: ExportedProgram, opset: int | None, kinds: list[Any]) -> Any:
    """The ONNX model, without what is of this machine; raises `ExportError` where it is not of the opset asked for."""
    try:
        with quiet(), onnx_library_read_once():
            exported: Any = torch.onnx.export(
                program, opset_version=opset, dynamo=True, verbose=False, custom_translation_table=translations()
            )
    except Exception as error:
        raise cannot_export(error) from error
    onnx_model = exported.model
    if opset is not None and onnx_model.opset_imports[""] != opset:
        raise ExportError(f"the exporter cannot write opset {opset} for this model; leave opset out")
    onnx_functions.add_bodies(onnx_model, kinds)
    model_file.tidy(onnx_model)
    return onnx_model


def _judge(verification: Verification, path: Path, verify: bool | str, dtype: torch.dtype | None) -> None:
    if verification.error <= verification.tolerance:
        return
    asked = "" if dtype is None else f" in {str(dtype).removeprefix('torch.')}"
    allowed = f"(allowed: {verification.tolerance:g}){asked}"
    text = f"{verification.by} differs from PyTorch by {verification.error:.2e} {allowed}"
    if verify != "warn":
        raise ExportError(f"{text}; {path} was not written")
    warnings.warn(f"{text}; {path} was written all the same", stacklevel=3)
