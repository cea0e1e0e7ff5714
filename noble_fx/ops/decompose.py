"""Under torch.compile the operators come apart on the CPU, where Inductor does better with the pieces.

An operator that stays whole is Python between two compiled pieces, which Inductor can neither fuse nor plan memory for.
So where AOTAutograd traces a graph to be compiled, each is replaced by what it does. On CUDA the operator stays whole:
the kernels are its own. Programs that are exported keep it too: the passes and the ONNX exporter look for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from noble_fx.ops import composite, direct
from noble_fx.ops.linear import present
from noble_fx.schema import library
from noble_fx.torch_versions import FunctionalTensorMode, stays_whole


def _linear(*arguments: Any) -> Tensor:
    y: Tensor = composite.forward(direct.flat_of_linear(arguments), 1, arguments[-1])[0]
    return y


def _linear_forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    y, h = composite.forward(direct.flat_of_linear(arguments), 1, arguments[-1])
    return y, h


def _linear_backward(dy, x, h, weight, down, up, act, act_key, needs):
    return present(composite.backward([dy], h, [x, weight, None, down, None, up, *act], 1, act_key, needs), dy)


def _group(*arguments: Any) -> list[Tensor]:
    return composite.forward(direct.flat_of_group(arguments), len(arguments[1]), arguments[-1])[:-1]


def _group_forward(*arguments: Any) -> tuple[list[Tensor], Tensor]:
    *y, h = composite.forward(direct.flat_of_group(arguments), len(arguments[1]), arguments[-1])
    return y, h


def _group_backward(dy, x, h, weight, down, up, act, act_key, needs):
    flat = direct.flat_of_group((x, weight, [], down, [], up, act, act_key))
    return present(composite.backward(dy, h, flat, len(weight), act_key, needs), x)


def _device(first: Any) -> str:
    tensor: Tensor = first[0] if isinstance(first, list | tuple) else first
    return tensor.device.type


def _decomposed(function: Callable[..., Any]) -> Callable[..., Any]:
    def rule(mode: Any, operator: Any, types: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        if stays_whole(types) or _device(args[0]) != "cpu":
            return mode.__torch_dispatch__(operator, types, args, kwargs)
        with mode:
            return function(*args, **kwargs)

    return rule


for name, function in {
    "linear": _linear,
    "linear_forward": _linear_forward,
    "linear_backward": _linear_backward,
    "linear_group": _group,
    "linear_group_forward": _group_forward,
    "linear_group_backward": _group_backward,
}.items():
    torch.library.register_torch_dispatch(f"noble_fx::{name}", FunctionalTensorMode, _decomposed(function), lib=library)
