"""Run an exported model with ONNX Runtime, tensors in and tensors out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from noble_fx.errors import ExportError, nearest

_DTYPES = {
    "tensor(float)": torch.float32,
    "tensor(double)": torch.float64,
    "tensor(float16)": torch.float16,
    "tensor(bfloat16)": torch.bfloat16,
    "tensor(int64)": torch.int64,
    "tensor(int32)": torch.int32,
    "tensor(int8)": torch.int8,
    "tensor(uint8)": torch.uint8,
    "tensor(bool)": torch.bool,
}


class OnnxModel:
    """An ONNX file as a function of tensors: `OnnxModel("model.onnx")(x)`, or by input name.

    `device`: "auto" takes CUDA where ONNX Runtime has it, else the CPU; "cpu"; "cuda". Returns a tensor, or a tuple
    where the model has several outputs. Raises `ExportError` for a file that cannot be read, a device that is not
    there, and inputs that do not fit, by name.
    """

    def __init__(self, path: str | Path, device: str = "auto"):
        try:
            import onnxruntime
        except ImportError:
            raise ExportError('OnnxModel needs ONNX Runtime: pip install "noble-fx[onnx]"') from None
        if device not in ("auto", "cpu", "cuda"):
            raise ExportError(f"device={device!r} is unknown; use 'auto', 'cpu' or 'cuda'")
        cuda = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
        if device == "cuda" and not cuda:
            raise ExportError("device='cuda' was asked for, but this ONNX Runtime has no CUDA; install onnxruntime-gpu")
        providers = ["CPUExecutionProvider"]
        if cuda and device != "cpu":
            providers.insert(0, "CUDAExecutionProvider")
        if not Path(path).is_file():
            raise ExportError(f"{path} does not exist; noble_fx.export_onnx(model, …, path=…) makes such a file")
        try:
            self._session = onnxruntime.InferenceSession(str(path), providers=providers)
        except Exception as error:
            raise ExportError(f"{path} is no ONNX file that ONNX Runtime can run: {error}") from error
        self.path = Path(path)
        self.inputs = {i.name: i for i in self._session.get_inputs()}
        self.outputs = [o.name for o in self._session.get_outputs()]
        self.providers = tuple(self._session.get_providers())

    def __call__(self, *tensors: Tensor, **named_tensors: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Run the model; outputs come back on the device of the first input."""
        given = self._bind(tensors, named_tensors)
        device = next(iter(given.values())).device if given else torch.device("cpu")
        feed = {name: self._array(name, tensor) for name, tensor in given.items()}
        outputs = [torch.from_numpy(array).to(device) for array in self._session.run(self.outputs, feed)]
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def _bind(self, tensors: tuple[Tensor, ...], named: dict[str, Tensor]) -> dict[str, Tensor]:
        names = list(self.inputs)
        if len(tensors) > len(names):
            raise ExportError(f"{len(tensors)} inputs given, but the model takes {len(names)}: {', '.join(names)}")
        given = dict(zip(names, tensors, strict=False))
        for name, tensor in named.items():
            if name not in self.inputs:
                raise ExportError(f"{name!r} is not an input{nearest(name, names)}; the inputs are {', '.join(names)}")
            if name in given:
                raise ExportError(f"input {name!r} was given twice, by position and by name")
            given[name] = tensor
        missing = [name for name in names if name not in given]
        if missing:
            raise ExportError(f"input {missing[0]!r} is missing; the inputs are {', '.join(names)}")
        for name, tensor in given.items():
            if not isinstance(tensor, Tensor):
                raise ExportError(f"input {name!r} must be a tensor, not {type(tensor).__name__}")
        return given

    def _array(self, name: str, tensor: Tensor) -> Any:
        described = self.inputs[name]
        wanted = _DTYPES.get(described.type)
        if wanted is not None and tensor.dtype != wanted:
            raise ExportError(f"input {name!r} has dtype {tensor.dtype}, but the model takes {wanted}")
        if described.shape is not None and tensor.ndim != len(described.shape):
            raise ExportError(f"input {name!r} has {tensor.ndim} dimensions, but the model takes {described.shape}")
        for axis, size in enumerate(described.shape or ()):
            if isinstance(size, int) and tensor.shape[axis] != size:
                raise ExportError(f"input {name!r} is {list(tensor.shape)}, but the model takes {described.shape}")
        return tensor.detach().cpu().contiguous().numpy()
