"""Run an exported model with ONNX Runtime, tensors in and tensors out.

`open_session` opens the file, `runs` moves tensors in and out of it; here is the class that a user calls, and what it
says of inputs that do not fit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from noble_fx.errors import ExportError, nearest
from noble_fx.files import existing_file
from noble_fx.onnx_export.open_session import CUDA, MissingKernel, choose_device, load_onnxruntime, open_session
from noble_fx.onnx_export.runs import DTYPES, choose_run

__all__ = ["MissingKernel", "OnnxModel"]


class OnnxModel:
    """An ONNX file as a function of tensors: `OnnxModel("model.onnx")(x)`, or by input name.

    `device`: "auto" takes CUDA where ONNX Runtime has it, else the CPU; "cpu"; "cuda"; "cuda:1". `threads`: how many
    one operator may use on the CPU (default: ONNX Runtime's choice). `cuda_graph`: record one CUDA graph for every
    shape of inputs and replay it; for models that run wholly on the GPU and are called with few shapes.
    Returns a tensor, or a tuple where the model has several outputs. May be called from several threads at once.
    Raises `ExportError` for a file that cannot be read, a device that is not there, and inputs that do not fit, by
    name; `MissingKernel` where the file is right and the device lacks an operator.
    """

    def __init__(
        self, path: str | Path, device: str = "auto", threads: int | None = None, cuda_graph: bool = False
    ) -> None:
        load_onnxruntime()
        wanted = choose_device(device)
        if cuda_graph and wanted.type != "cuda":
            raise ExportError("cuda_graph=True needs a GPU, and this model would run on the CPU; leave it out")
        if threads is not None and (type(threads) is not int or threads < 1):
            raise ExportError(f"threads={threads!r} must be a positive number")
        self.path = existing_file(path, ExportError, "noble_fx.export_onnx(model, …, path=…) makes such a file")
        self._session = open_session(self.path, wanted, threads, cuda_graph)
        self.providers = tuple(self._session.get_providers())
        if wanted.type == "cuda" and CUDA not in self.providers:
            # ONNX Runtime goes back to the CPU by itself where CUDA's libraries cannot be loaded.
            if device != "auto":
                raise ExportError(f"device={device!r} was asked for, but CUDA or cuDNN could not be loaded")
            wanted = torch.device("cpu")
        self.device = wanted
        self.inputs = {i.name: i for i in self._session.get_inputs()}
        self.outputs = [o.name for o in self._session.get_outputs()]
        self._run = choose_run(self._session, wanted, cuda_graph)

    def __call__(self, *tensors: Tensor, **named_tensors: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Run the model; outputs come back on the device of the first input."""
        tensors_by_name = self._bind(tensors, named_tensors)
        device = next(iter(tensors_by_name.values())).device if tensors_by_name else self.device
        feed = {name: self._fitting(name, tensors_by_name[name]) for name in self.inputs}
        outputs = [out.to(device) for out in self._run.run(feed)]
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def warm_up(self, *tensors: Tensor, runs: int = 3, **named_tensors: Tensor) -> OnnxModel:
        """Run a few times, so that the first real call finds memory, kernels and graphs ready; returns itself."""
        for _ in range(runs):
            self(*tensors, **named_tensors)
        return self

    def _bind(self, tensors: tuple[Tensor, ...], named: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensor of every input, by name. Inputs of a file carry any name, so no `inspect.Signature` holds them."""
        names = list(self.inputs)
        if len(tensors) > len(names):
            raise ExportError(f"{len(tensors)} inputs given, but the model takes {len(names)}: {', '.join(names)}")
        bound = dict(zip(names, tensors, strict=False))
        for name, tensor in named.items():
            if name not in self.inputs:
                raise ExportError(f"{name!r} is not an input{nearest(name, names)}; the inputs are {', '.join(names)}")
            if name in bound:
                raise ExportError(f"input {name!r} was given twice, by position and by name")
            bound[name] = tensor
        missing = [name for name in names if name not in bound]
        if missing:
            raise ExportError(f"input {missing[0]!r} is missing; the inputs are {', '.join(names)}")
        for name, tensor in bound.items():
            if not isinstance(tensor, Tensor):
                raise ExportError(f"input {name!r} must be a tensor, not {type(tensor).__name__}")
        return bound

    def _fitting(self, name: str, tensor: Tensor) -> Tensor:
        """The tensor as the session takes it, on its device and contiguous; or the error that names what is wrong."""
        value: Any = self.inputs[name]
        if value.type not in DTYPES:
            raise ExportError(f"input {name!r} is a {value.type}, which no tensor of torch is")
        wanted, _ = DTYPES[value.type]
        if tensor.dtype != wanted:
            raise ExportError(f"input {name!r} has dtype {tensor.dtype}, but the model takes {wanted}")
        if value.shape is not None and tensor.ndim != len(value.shape):
            raise ExportError(f"input {name!r} has {tensor.ndim} dimensions, but the model takes {value.shape}")
        for axis, size in enumerate(value.shape or ()):
            if isinstance(size, int) and tensor.shape[axis] != size:
                raise ExportError(f"input {name!r} is {list(tensor.shape)}, but the model takes {value.shape}")
        return tensor.detach().to(self.device).contiguous()
