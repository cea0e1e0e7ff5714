"""A file in OpenVINO on the CPU, called as `noble_fx.runtime.OnnxModel` is. Imported late: few benchmarks need it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

DEVICE = "CPU"


class OpenVino:
    """`precision`: what float32 is computed in. OpenVINO's own choice is bfloat16 where the CPU multiplies it."""

    def __init__(self, path: Path, threads: int, precision: str = "f32") -> None:
        import openvino

        settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": precision}
        self._request: Any = openvino.compile_model(path, DEVICE, settings).create_infer_request()

    def __call__(self, x: Tensor) -> object:
        return self._request.infer([x.numpy()], share_inputs=True, share_outputs=True)


def version() -> str:
    """Of OpenVINO, without the build."""
    import openvino

    return str(openvino.__version__).partition("-")[0]


def has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16, so that OpenVINO takes it where nothing else is asked for."""
    import openvino

    return "BF16" in openvino.Core().get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")
