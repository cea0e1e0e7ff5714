"""One run of a session, tensors in and tensors out, in three variants.

Arrays        on the CPU: NumPy's view of the tensors' memory, ONNX Runtime's plain call
Bound         inputs by their address, outputs as views of ONNX Runtime's own memory (DLPack); nothing goes through
              the host
FixedShapes   the same with memory that stays, so that a CUDA graph can replay its addresses

On the CPU the plain call is the faster one (16 µs against 74 µs for an empty graph); only bfloat16, which NumPy does
not have, is bound there.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from noble_fx.errors import ExportError
from noble_fx.onnx_export.open_session import load_onnxruntime

DTYPES = {  # ONNX Runtime's name -> (torch's dtype, ONNX's number of it)
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


def choose_run(session: Any, device: torch.device, cuda_graph: bool) -> Arrays | Bound:
    """The variant that is right and fastest for this session on this device."""
    if cuda_graph:
        return FixedShapes(session, device)
    values = [*session.get_inputs(), *session.get_outputs()]
    arrays = device.type == "cpu" and not any(value.type == "tensor(bfloat16)" for value in values)
    return Arrays(session) if arrays else Bound(session, device)


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
        self._types = {i.name: DTYPES[i.type][1] for i in session.get_inputs() if i.type in DTYPES}
        self._outputs = [(o.name, DTYPES.get(o.type, (None,))[0]) for o in session.get_outputs()]

    def run(self, feed: dict[str, Tensor]) -> list[Tensor]:
        """All outputs, on the session's device."""
        return self._run_freely(feed)

    def _run_freely(self, feed: dict[str, Tensor], options: Any = None) -> list[Tensor]:
        """One run whose outputs lie where ONNX Runtime puts them."""
        binding = self._session.io_binding()
        self._bind_inputs(binding, feed)
        for name, _ in self._outputs:
            binding.bind_output(name, self._device.type, self._index)
        self._call(binding, options)
        outputs = zip(binding.get_outputs(), self._outputs, strict=True)
        return [_as_tensor(value, dtype) for value, (_, dtype) in outputs]

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


@dataclass
class Recording:
    """What one CUDA graph replays: the bound memory of its inputs and outputs, and its number in `options`."""

    binding: Any
    options: Any
    inputs: dict[str, Tensor]
    outputs: list[Tensor]


class FixedShapes(Bound):
    """A CUDA graph for each shape of inputs: the same memory every time, copied in and out of it.

    A graph replays recorded addresses, so inputs are copied into buffers that stay, and results are cloned from those
    that stay. Calls wait for one another.
    """

    def __init__(self, session: Any, device: torch.device) -> None:
        super().__init__(session, device)
        self._lock = threading.Lock()
        self._recordings: dict[Any, Recording] = {}

    def run(self, feed: dict[str, Tensor]) -> list[Tensor]:
        """All outputs, copies of the graph's own."""
        shapes = tuple((name, tuple(tensor.shape)) for name, tensor in feed.items())
        with self._lock:
            if shapes not in self._recordings:
                self._recordings[shapes] = self._record(feed)
            recording = self._recordings[shapes]
            for name, tensor in feed.items():
                recording.inputs[name].copy_(tensor)
            self._call(recording.binding, recording.options)
            return [output.clone() for output in recording.outputs]

    def _record(self, feed: dict[str, Tensor]) -> Recording:
        inputs = {name: tensor.clone() for name, tensor in feed.items()}
        # One run that records nothing shows the shapes of the outputs.
        outputs = [torch.empty_like(output) for output in self._run_freely(inputs, _graph_options(-1))]
        binding = self._session.io_binding()
        self._bind_inputs(binding, inputs)
        for value, tensor in zip(self._session.get_outputs(), outputs, strict=True):
            number, address = DTYPES[value.type][1], tensor.data_ptr()
            binding.bind_output(value.name, self._device.type, self._index, number, tuple(tensor.shape), address)
        return Recording(binding, _graph_options(len(self._recordings) + 1), inputs, outputs)


def _failed(error: Exception) -> ExportError:
    return ExportError(f"ONNX Runtime failed on these inputs: {error}")


def _graph_options(number: int) -> Any:
    """Which CUDA graph a run records or replays; -1 for none."""
    options = load_onnxruntime().RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(number))
    return options


def _as_tensor(value: Any, dtype: torch.dtype | None) -> Tensor:
    """An output without a copy; DLPack has no bool, so that one comes as bytes."""
    if not hasattr(value, "__dlpack__"):  # ONNX Runtime built without it
        return torch.from_numpy(value.numpy())
    tensor = torch.from_dlpack(value)
    return tensor.view(torch.bool) if dtype == torch.bool and tensor.dtype != torch.bool else tensor
