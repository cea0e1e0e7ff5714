"""Where AOTAutograd traces a graph to be compiled, each operator is replaced by what it does.

An operator that stays whole is Python between two compiled pieces, which Inductor can neither fuse nor plan memory for.
On CUDA it becomes its kernels and products (`traced.py`), elsewhere PyTorch's operators. Programs that are exported
keep the operator: the passes and the ONNX exporter look for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from noble_fx.ops import composite, cuda, direct, factorized, traced
from noble_fx.ops.direct import Flat, Tensors
from noble_fx.ops.from_flat import operators_of
from noble_fx.schema import library
from noble_fx.torch_versions import FunctionalTensorMode, stays_whole


def _forward(flat: Tensors, count: int, act_key: str, keep_h: bool) -> list[Any]:
    """y [.., N] of each site, then h; none of them anybody's view, so that each may be changed in place."""
    if _device(flat[0]) == "cuda":
        return cuda.forward(flat, count, act_key, keep_h, by=traced)
    *y, h = composite.forward(flat, count, act_key)
    return [*(torch.ops.aten._unsafe_view(of_site, of_site.shape) for of_site in y), h]


def _backward(dy: Sequence[Tensor], h: Tensor, flat: Tensors, count: int, act_key: str, needs: Sequence[bool]) -> Flat:
    if _device(flat[0]) == "cuda":
        return cuda.backward(dy, h, flat, count, act_key, needs, by=traced)
    return composite.backward(dy, h, flat, count, act_key, needs)


def _device(x: Any) -> str:
    device: str = x.device.type
    return device


def _rule(function: Callable[..., Any]) -> Callable[..., Any]:
    def rule(mode: Any, operator: Any, types: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        if stays_whole(types):
            return mode.__torch_dispatch__(operator, types, args, kwargs)
        with mode:
            return function(*args, **kwargs)

    return rule


_WHOLE_IN_PYTORCH: dict[str, Callable[..., Any]] = {
    "factorized_linear": lambda *arguments: factorized.forward(*arguments)[0],
    "factorized_linear_forward": factorized.forward,
    "factorized_linear_backward": factorized.backward,
}
for name, function in (operators_of(direct.Implementation(_forward, _backward)) | _WHOLE_IN_PYTORCH).items():
    torch.library.register_torch_dispatch(f"noble_fx::{name}", FunctionalTensorMode, _rule(function), lib=library)
