"""Export a model with its branches to ONNX, and check the file against PyTorch before it takes its place.

    model --fold--> --torch.export--> program --passes--> program --torch.onnx--> file --checked, verified--> path

Everything happens on a copy, and a file that fails its check is never put at `path`. `onnx_export/` has the steps.
"""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from noble_fx.captures.base import check_model, modes_restored
from noble_fx.captures.torch_export import quiet, without_cache
from noble_fx.errors import CaptureError, ExportError
from noble_fx.files import staged
from noble_fx.fold import fold_in_place
from noble_fx.onnx_export import functions as onnx_functions
from noble_fx.onnx_export import model_file
from noble_fx.onnx_export.operators import translations
from noble_fx.onnx_export.program import cannot_export, capture, lower, rewrite, size_names
from noble_fx.onnx_export.report import ExportReport
from noble_fx.onnx_export.verify import TOLERANCE, Verification
from noble_fx.onnx_export.verify import verify as _verify
from noble_fx.passes.history import Step
from noble_fx.passes.inference.fold_branch import fold_branch
from noble_fx.passes.inference.join_down import join_down
from noble_fx.passes.inference.join_up import join_up
from noble_fx.passes.inference.remove_dead import remove_dead
from noble_fx.sites.from_file import METADATA

__all__ = ["ExportReport", "export_onnx"]

_BF16_OPSET = 22  # the first one whose trigonometric operators take bfloat16
_PIPELINES = {"up": "export", "down": "export_down", False: "export_apart"}
STAGES = ("fold", "capture", "rewrite", "translate", "write", "verify")


def export_onnx(
    model: nn.Module,
    args: tuple[Any, ...] = (),
    path: str | Path = "model.onnx",
    kwargs: dict[str, Any] | None = None,
    dynamic_shapes: Any = None,
    dtype: torch.dtype | None = None,
    opset: int | None = None,
    fold: bool = True,
    functions: bool = False,
    verify: bool | str = True,
    join: str | bool = "up",
    overwrite: bool = False,
    progress: Callable[[str], None] = lambda stage: None,
) -> ExportReport:
    """Write `model` in eval mode to `path`; batch and sequence sizes stay dynamic unless `dynamic_shapes` says else.

    `args` and `kwargs` are example inputs. `fold` folds the constants of σ. `join="up"` makes W and U one matrix, so
    that y is written once; "down" makes W and D one, so that x is read once; False keeps all apart, as does a matrix
    that another product reads. `functions` keeps each site one node with its maths in a function of the file (not
    joined: a box has the operands of the formula). The file is run and compared with PyTorch at several sizes;
    `verify="warn"` keeps a file that is too far off, with a warning, and `verify=False` does not look.
    `progress` is called with the name of each stage. `model` itself is never changed.
    Raises `ExportError` when the model cannot be exported, a result is too far off, or `path` exists or cannot be
    written; nothing is left at `path` then.
    """
    _need_onnx()
    _check_request(model, verify, join, opset)
    path, kwargs = Path(path), without_cache(model, kwargs or {}, ExportError)
    args = (args,) if isinstance(args, Tensor) else tuple(args)
    dtype = _checked_dtype(dtype or _model_dtype(model))
    opset = _BF16_OPSET if opset is None and dtype == torch.bfloat16 else opset
    args, kwargs = pytree.tree_map_only(Tensor, lambda t: _example(t, dtype), (args, kwargs))
    with staged(path, ExportError, overwrite) as work, torch.no_grad():
        progress("fold")
        copied, steps = _folded(model, dtype, fold)
        progress("capture")
        captured = capture(copied, args, kwargs, dynamic_shapes)
        progress("rewrite")
        program, rewrites, kinds = _prepared(captured, join, functions)
        steps += rewrites
        progress("translate")
        made = _translate(program, opset, kinds)
        model_file.name_ends(made, captured)
        model_file.name_sizes(made, program, size_names(model, args, kwargs, dynamic_shapes))
        form = "one noble_fx::Linear node a site" if functions else "products of rows (Gemm) a site"
        made.metadata_props[METADATA] = model_file.describe(model, steps, form, str(dtype).removeprefix("torch."))
        progress("write")
        file = work / path.name
        model_file.write(made, file)
        model_file.check(file, dtype, made.opset_imports[""])
        found = None
        if verify:
            progress("verify")
            with modes_restored(model):
                truth = model.eval() if dtype == _model_dtype(model) else _copy(model, dtype)
                found = _verify(truth, file, args, kwargs, captured, dtype, ranged=dynamic_shapes is not None)
            _judge(found, path, verify)
        size = sum(one.stat().st_size for one in work.iterdir())
    return _report(made, path, size, found, TOLERANCE[dtype], steps)


def _check_request(model: Any, verify: bool | str, join: str | bool, opset: int | None) -> None:
    import onnx

    try:
        check_model(model)
    except CaptureError as error:
        raise ExportError(str(error).replace("noble_fx.transform", "noble_fx.export_onnx")) from None
    if verify not in (True, False, "warn"):
        raise ExportError(f"verify={verify!r} is unknown; use True, False or 'warn'")
    if join not in list(_PIPELINES):
        raise ExportError(f"join={join!r} is unknown; use 'up', 'down' or False")
    newest = onnx.defs.onnx_opset_version()
    if opset is not None and not 18 <= opset <= newest:
        raise ExportError(f"opset={opset} cannot be written; use 18 to {newest}")
    if any(t.is_meta for t in [*model.parameters(), *model.buffers()]):
        raise ExportError("the model is on the meta device and has no values to export; load or initialise it first")


def _checked_dtype(dtype: torch.dtype) -> torch.dtype:
    if dtype not in TOLERANCE:
        known = ", ".join(str(d).removeprefix("torch.") for d in TOLERANCE)
        raise ExportError(f"dtype={dtype} cannot be exported; use one of {known}")
    return dtype


def _copy(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy in eval mode without gradients; its parameters are objects of its own over the model's memory."""
    memo: dict[int, Any] = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()}
    copied = copy.deepcopy(model, memo)
    return _cast(copied, dtype).eval().requires_grad_(False)


def _folded(model: nn.Module, dtype: torch.dtype, fold: bool) -> tuple[nn.Module, list[Step]]:
    """A copy, and what was folded in it; folded first, then cast, so that ω ⊙ D is rounded once."""
    copied = _copy(model, _model_dtype(model))
    steps = fold_in_place(copied) if fold else []
    return _cast(copied, dtype), steps


def _cast(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    if dtype == _model_dtype(model):
        return model
    try:
        return model.to(dtype)
    except CaptureError as error:
        raise ExportError(str(error)) from None


def _prepared(program: Any, join: str | bool, functions: bool) -> tuple[Any, list[Step], list[Any]]:
    try:
        program, steps = rewrite(program, _PIPELINES[False if functions else join])
        if not functions:
            return lower(program), steps, []
        program, kinds = onnx_functions.as_nodes(program)
        return program, steps, kinds
    except Exception as error:
        raise cannot_export(error) from error


def _translate(program: Any, opset: int | None, kinds: list[Any]) -> Any:
    """The ONNX model, without what is of this machine."""
    try:
        with quiet():
            made: Any = torch.onnx.export(
                program, opset_version=opset, dynamo=True, verbose=False, custom_translation_table=translations()
            )
    except Exception as error:
        raise cannot_export(error) from error
    if opset is not None and made.model.opset_imports[""] != opset:
        raise ExportError(f"the exporter cannot write opset {opset} for this model; leave opset out")
    onnx_functions.add_bodies(made.model, kinds)
    model_file.share_initializers(made.model)
    model_file.strip(made.model)
    return made.model


def _judge(found: Verification, path: Path, verify: bool | str) -> None:
    if found.error <= found.tolerance:
        return
    text = f"{found.by} differs from PyTorch by {found.error:.2e} (allowed: {found.tolerance:g})"
    if verify != "warn":
        raise ExportError(f"{text}; {path} was not written")
    warnings.warn(f"{text}; {path} was written all the same", stacklevel=3)


def _report(
    made: Any, path: Path, size: int, found: Verification | None, tolerance: float, steps: list[Step]
) -> ExportReport:
    shown = (fold_branch.name, join_up.name, join_down.name)
    nodes = [*made.graph, *(node for function in made.functions.values() for node in function)]
    return ExportReport(
        path=path,
        opset=made.opset_imports[""],
        nodes=len(nodes),
        size=size,
        inputs={value.name: f"{value.dtype} {value.shape}" for value in made.graph.inputs},
        outputs={value.name: f"{value.dtype} {value.shape}" for value in made.graph.outputs},
        largest_error=found.error if found else None,
        tolerance=found.tolerance if found else tolerance,
        checked=found.checked if found else (),
        verified_by=found.by if found else "",
        passes=dict(Counter(step.rule for step in steps if not step.skipped and step.rule != remove_dead.name)),
        kept=dict(Counter(f"{step.rule}: {step.skipped}" for step in steps if step.rule in shown and step.skipped)),
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
