"""Run an exported model with ONNX Runtime, tensors in and tensors out.

On a GPU inputs are bound by their address and outputs come back as views of ONNX Runtime's own memory (DLPack), so
nothing goes through the host. On the CPU arrays share memory with tensors, and ONNX Runtime's plain call is the faster
one (16 µs against 74 µs for an empty graph); only bfloat16, which NumPy does not have, is bound there.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from noble_fx.errors import ExportError, nearest

_DTYPES = {  # ONNX Runtime's name -> (torch's dtype, ONNX's number of it)
    "tensor(float)": (torch.float32, 1),
    "tensor(uint8)": (torch.uint8, 2),
    "tensor(int8)": (torch.int8, 3),
    "tensor(int16)": (torch.int16, 5),
    "tensor(int32)": (torch.int32, 6),
    "tensor(int64)": (torch.int64, 7),
    "tensor(bool)": (torch.bool, 9),
    "tensor(float16)": (torch.float16, 10),
    "tensor(double)": (torch.float64, 11),
    "tensor(bfloat16)": (torch.bfloat16, 16),
}


class MissingKernel(ExportError):
    """A file that is right, but holds an operator that this ONNX Runtime cannot run on this device in this dtype."""


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
        onnxruntime = _onnxruntime()
        wanted = _device(device, onnxruntime)
        if cuda_graph and wanted.type != "cuda":
            raise ExportError("cuda_graph=True needs a GPU, and this model would run on the CPU; leave it out")
        if threads is not None and (not isinstance(threads, int) or threads < 1):
            raise ExportError(f"threads={threads!r} must be a positive number")
        self.path = Path(path)
        if not self.path.is_file():
            raise ExportError(f"{path} does not exist; noble_fx.export_onnx(model, …, path=…) makes such a file")
        self._session = _session(self.path, wanted, threads, cuda_graph, onnxruntime)
        self.providers = tuple(self._session.get_providers())
        if wanted.type == "cuda" and "CUDAExecutionProvider" not in self.providers:
            # ONNX Runtime goes back to the CPU by itself where CUDA's libraries cannot be loaded.
            if device != "auto":
                raise ExportError(f"device={device!r} was asked for, but CUDA or cuDNN could not be loaded")
            wanted = torch.device("cpu")
        self.device = wanted
        self.inputs = {i.name: i for i in self._session.get_inputs()}
        self.outputs = [o.name for o in self._session.get_outputs()]
        self._runner = _runner(self._session, wanted, cuda_graph)

    def __call__(self, *tensors: Tensor, **named_tensors: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Run the model; outputs come back on the device of the first input."""
        given = self._bind(tensors, named_tensors)
        device = next(iter(given.values())).device if given else self.device
        feed = {name: self._fitting(name, given[name]) for name in self.inputs}
        outputs = [out.to(device) for out in self._runner.run(feed)]
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def warm_up(self, *tensors: Tensor, runs: int = 3, **named_tensors: Tensor) -> OnnxModel:
        """Run a few times, so that the first real call finds memory, kernels and graphs ready; returns itself."""
        for _ in range(runs):
            self(*tensors, **named_tensors)
        return self

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

    def _fitting(self, name: str, tensor: Tensor) -> Tensor:
        """The tensor as the session takes it, on its device and contiguous; or the error that names what is wrong."""
        described = self.inputs[name]
        if described.type not in _DTYPES:
            raise ExportError(f"input {name!r} is a {described.type}, which no tensor of torch is")
        wanted, _ = _DTYPES[described.type]
        if tensor.dtype != wanted:
            raise ExportError(f"input {name!r} has dtype {tensor.dtype}, but the model takes {wanted}")
        if described.shape is not None and tensor.ndim != len(described.shape):
            raise ExportError(f"input {name!r} has {tensor.ndim} dimensions, but the model takes {described.shape}")
        for axis, size in enumerate(described.shape or ()):
            if isinstance(size, int) and tensor.shape[axis] != size:
                raise ExportError(f"input {name!r} is {list(tensor.shape)}, but the model takes {described.shape}")
        return tensor.detach().to(self.device).contiguous()


class Arrays:
    """One run of a session on the CPU, over NumPy's view of the tensors' memory."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def run(self, feed: dict[str, Tensor]) -> list[Tensor]:
        """All outputs."""
        try:
            outputs = self._session.run(None, {name: tensor.numpy() for name, tensor in feed.items()})
        except Exception as error:
            raise _failed(error) from error
        return [torch.from_numpy(array) for array in outputs]


class Bound:
    """One run of a session over bound memory; a binding of its own for each call, so threads do not meet."""

    def __init__(self, session: Any, device: torch.device) -> None:
        self._session, self._device = session, device
        self._types = {i.name: _DTYPES[i.type][1] for i in session.get_inputs() if i.type in _DTYPES}
        self._outputs = [(o.name, _DTYPES.get(o.type, (None,))[0]) for o in session.get_outputs()]

    def run(self, feed: dict[str, Tensor]) -> list[Tensor]:
        """All outputs, on the session's device."""
        binding = self._session.io_binding()
        self._bind_inputs(binding, feed)
        for name, _ in self._outputs:
            binding.bind_output(name, self._device.type, self._index)
        self._call(binding)
        values = zip(binding.get_outputs(), self._outputs, strict=True)
        return [_tensor(value, dtype) for value, (_, dtype) in values]

    @property
    def _index(self) -> int:
        return self._device.index or 0

    def _bind_inputs(self, binding: Any, feed: dict[str, Tensor]) -> None:
        for name, tensor in feed.items():
            shape, address = tuple(tensor.shape), tensor.data_ptr()
            binding.bind_input(name, self._device.type, self._index, self._types[name], shape, address)

    def _call(self, binding: Any, options: Any = None) -> None:
        if self._device.type == "cuda":  # the session has a stream of its own: what torch still writes must be there
            torch.cuda.current_stream(self._device).synchronize()
        try:
            self._session.run_with_iobinding(binding, options)
        except Exception as error:
            raise _failed(error) from error
        if self._device.type == "cuda":
            binding.synchronize_outputs()


class FixedShapes(Bound):
    """A CUDA graph for each shape of inputs: the same memory every time, copied in and out of it.

    A graph replays recorded addresses, so inputs are copied into buffers that stay, and results are cloned from those
    that stay. Calls wait for one another.
    """

    def __init__(self, session: Any, device: torch.device) -> None:
        super().__init__(session, device)
        self._lock = threading.Lock()
        self._graphs: dict[Any, tuple[Any, Any, dict[str, Tensor], list[Tensor]]] = {}

    def run(self, feed: dict[str, Tensor]) -> list[Tensor]:
        """All outputs, copies of the graph's own."""
        shapes = tuple((name, tuple(tensor.shape)) for name, tensor in feed.items())
        with self._lock:
            if shapes not in self._graphs:
                self._graphs[shapes] = self._record(feed)
            binding, options, inputs, outputs = self._graphs[shapes]
            for name, tensor in feed.items():
                inputs[name].copy_(tensor)
            self._call(binding, options)
            return [output.clone() for output in outputs]

    def _record(self, feed: dict[str, Tensor]) -> tuple[Any, Any, dict[str, Tensor], list[Tensor]]:
        inputs = {name: tensor.clone() for name, tensor in feed.items()}
        outputs = [torch.empty_like(one) for one in self._shapes_of_outputs(inputs)]
        binding = self._session.io_binding()
        self._bind_inputs(binding, inputs)
        for described, tensor in zip(self._session.get_outputs(), outputs, strict=True):
            number, address = _DTYPES[described.type][1], tensor.data_ptr()
            binding.bind_output(described.name, self._device.type, self._index, number, tuple(tensor.shape), address)
        return binding, _graph_options(len(self._graphs) + 1), inputs, outputs

    def _shapes_of_outputs(self, inputs: dict[str, Tensor]) -> list[Tensor]:
        """One run that records nothing; its results show the shapes."""
        binding = self._session.io_binding()
        self._bind_inputs(binding, inputs)
        for name, _ in self._outputs:
            binding.bind_output(name, self._device.type, self._index)
        self._call(binding, _graph_options(-1))
        values = zip(binding.get_outputs(), self._outputs, strict=True)
        return [_tensor(value, dtype) for value, (_, dtype) in values]


def _runner(session: Any, device: torch.device, cuda_graph: bool) -> Arrays | Bound:
    if cuda_graph:
        return FixedShapes(session, device)
    described = [*session.get_inputs(), *session.get_outputs()]
    arrays = device.type == "cpu" and not any(value.type == "tensor(bfloat16)" for value in described)
    return Arrays(session) if arrays else Bound(session, device)


def _failed(error: Exception) -> ExportError:
    return ExportError(f"ONNX Runtime failed on these inputs: {error}")


def _graph_options(number: int) -> Any:
    """Which CUDA graph a run records or replays; -1 for none."""
    options = _onnxruntime().RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(number))
    return options


def _tensor(value: Any, dtype: torch.dtype | None) -> Tensor:
    """An output without a copy; DLPack has no bool, so that one comes as bytes."""
    if not hasattr(value, "__dlpack__"):  # ONNX Runtime built without it
        return torch.from_numpy(value.numpy())
    tensor = torch.from_dlpack(value)
    return tensor.view(torch.bool) if dtype == torch.bool and tensor.dtype != torch.bool else tensor


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise ExportError('OnnxModel needs ONNX Runtime: pip install "noble-fx[onnx]"') from None
    return onnxruntime


def _device(device: str, onnxruntime: Any) -> torch.device:
    kind, colon, index = str(device).partition(":")
    if kind not in ("auto", "cpu", "cuda") or (colon and not (kind == "cuda" and index.isdigit())):
        raise ExportError(f"device={device!r} is unknown; use 'auto', 'cpu', 'cuda' or 'cuda:0'")
    there = "CUDAExecutionProvider" in onnxruntime.get_available_providers() and torch.cuda.is_available()
    if kind == "cuda" and not there:
        raise ExportError(
            f"device={device!r} was asked for, but this ONNX Runtime has no CUDA; install onnxruntime-gpu (in place of "
            "onnxruntime) on a machine with a GPU, or use device='cpu'"
        )
    if kind == "cuda" and index and int(index) >= torch.cuda.device_count():
        raise ExportError(f"device={device!r} is not there: this machine has {torch.cuda.device_count()} GPUs")
    return torch.device("cuda", int(index or 0)) if kind != "cpu" and there else torch.device("cpu")


def _session(path: Path, device: torch.device, threads: int | None, cuda_graph: bool, onnxruntime: Any) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    providers: list[Any] = ["CPUExecutionProvider"]
    if device.type == "cuda":
        settings = {"device_id": str(device.index), "enable_cuda_graph": "1" if cuda_graph else "0"}
        providers.insert(0, ("CUDAExecutionProvider", settings))
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:
        text = " ".join(str(error).split())
        if "NOT_IMPLEMENTED" in text or type(error).__name__ == "NotImplemented":
            raise MissingKernel(
                f"ONNX Runtime has no kernel on {device.type} for this file: {_kernel(text)}"
            ) from error
        raise ExportError(f"{path} is truncated, or no ONNX file that ONNX Runtime can run: {text}") from error


def _kernel(text: str) -> str:
    """The operator that is missing, from ONNX Runtime's sentence about it."""
    return text.partition("implementation for ")[2].partition(" node")[0] or text
