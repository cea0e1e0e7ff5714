"""What is asked of an export, checked before any work is done."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import nn

from noble_fx.errors import ExportError, check_flag, shown
from noble_fx.files import as_path
from noble_fx.onnx_export.join import check_join
from noble_fx.onnx_export.tolerance import TOLERANCE

_OLDEST_OPSET = 18
_BFLOAT16_OPSET = 22  # the first one whose trigonometric operators take bfloat16


def need_onnx() -> None:
    """Raises `ExportError` with the remedy where a package that an export needs is not installed."""
    try:
        import onnx  # noqa: F401
        import onnx_ir  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ExportError(f'export_onnx needs {error.name}: pip install "noble-fx[onnx]"') from None


def check_flags(progress: object, **flags: object) -> None:
    """Raises `ExportError` for a flag that is neither True nor False, and for a `progress` that cannot be called."""
    for name, value in flags.items():
        check_flag(name, value, ExportError)
    if not callable(progress):
        raise ExportError(f"progress={shown(progress)} must be a function of a stage's name")


def check_request(model: nn.Module, verify: bool | str, join: str | bool, opset: int | None) -> None:
    """Raises `ExportError` for a model without values and for settings that are unknown, with those that are known."""
    import onnx

    if not isinstance(verify, bool) and not (isinstance(verify, str) and verify == "warn"):
        raise ExportError(f"verify={shown(verify)} is unknown; use True, False or 'warn'")
    check_join(join, "auto")
    newest = onnx.defs.onnx_opset_version()
    if opset is not None and not (type(opset) is int and _OLDEST_OPSET <= opset <= newest):
        raise ExportError(f"opset={shown(opset)} cannot be written; use {_OLDEST_OPSET} to {newest}")
    check_values(model)


def check_values(model: nn.Module) -> None:
    """Raises `ExportError` for a model on the meta device."""
    if any(t.is_meta for t in [*model.parameters(), *model.buffers()]):
        raise ExportError("the model is on the meta device and has no values to export; load or initialise it first")


def checked_path(path: str | os.PathLike[str]) -> Path:
    """The path of a file to be written; raises `ExportError` for a folder, whatever `overwrite` says."""
    path = as_path(path, ExportError)
    if os.path.isdir(path):  # False for a path that no file can have; `staged` names the reason
        raise ExportError(f"{path} is a folder; pass the path of the file in it, as {path / 'model.onnx'}")
    return path


def checked_dtype(dtype: torch.dtype | None) -> torch.dtype | None:
    """The dtype that is asked for; raises `ExportError` for one that cannot be verified."""
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype in TOLERANCE):
        names = ", ".join(str(d).removeprefix("torch.") for d in TOLERANCE)
        raise ExportError(f"dtype={shown(dtype)} cannot be exported; use one of {names}")
    return dtype


def default_opset(dtypes: set[torch.dtype]) -> int | None:
    """The opset to write where none is asked for, by what the model computes in; None leaves it to torch's exporter."""
    return _BFLOAT16_OPSET if torch.bfloat16 in dtypes else None


def dtypes_of(model: nn.Module) -> tuple[torch.dtype, ...]:
    """The dtypes of the floating-point parameters, each once."""
    return tuple(dict.fromkeys(p.dtype for p in model.parameters() if p.is_floating_point()))
