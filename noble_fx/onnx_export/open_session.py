"""ONNX Runtime's session for a file: the device it runs on, and what is said where it cannot be opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from noble_fx.errors import ExportError

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


class MissingKernel(ExportError):
    """A file that is right, but holds an operator that this ONNX Runtime cannot run on this device in this dtype."""


def load_onnxruntime() -> Any:
    """The module `onnxruntime`; raises `ExportError` with the remedy where it is not installed."""
    try:
        import onnxruntime
    except ImportError:
        raise ExportError('OnnxModel needs ONNX Runtime: pip install "noble-fx[onnx]"') from None
    return onnxruntime


def choose_device(device: str) -> torch.device:
    """The device for "auto", "cpu", "cuda" or "cuda:1"; raises `ExportError` for one that is unknown or not there."""
    kind, colon, index = str(device).partition(":")
    if kind not in ("auto", "cpu", "cuda") or (colon and not (kind == "cuda" and _is_number(index))):
        raise ExportError(f"device={device!r} is unknown; use 'auto', 'cpu', 'cuda' or 'cuda:0'")
    has_cuda = CUDA in load_onnxruntime().get_available_providers() and torch.cuda.is_available()
    if kind == "cuda" and not has_cuda:
        raise ExportError(
            f"device={device!r} was asked for, but this ONNX Runtime has no CUDA; install onnxruntime-gpu (in place of "
            "onnxruntime) on a machine with a GPU, or use device='cpu'"
        )
    if kind == "cuda" and index and int(index) >= torch.cuda.device_count():
        raise ExportError(f"device={device!r} is not there: this machine has {torch.cuda.device_count()} GPUs")
    return torch.device("cuda", int(index or 0)) if kind != "cpu" and has_cuda else torch.device("cpu")


def _is_number(index: str) -> bool:
    return index.isascii() and index.isdigit() and len(index) < 5


def open_session(path: Path, device: torch.device, threads: int | None = None, cuda_graph: bool = False) -> Any:
    """An `InferenceSession` on the file; raises `MissingKernel`, or `ExportError` for what is no such file."""
    onnxruntime = load_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    providers: list[Any] = [CPU]
    if device.type == "cuda":
        settings = {"device_id": str(device.index), "enable_cuda_graph": "1" if cuda_graph else "0"}
        providers.insert(0, (CUDA, settings))
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:
        text = " ".join(str(error).split())
        if "NOT_IMPLEMENTED" in text or type(error).__name__ == "NotImplemented":
            operator = _missing_operator(text)
            raise MissingKernel(f"ONNX Runtime has no kernel on {device.type} for this file: {operator}") from error
        raise ExportError(f"{path} is truncated, or no ONNX file that ONNX Runtime can run: {text}") from error


def _missing_operator(text: str) -> str:
    """The operator that has no kernel, from ONNX Runtime's sentence about it."""
    return text.partition("implementation for ")[2].partition(" node")[0] or text
