"""`noble_fx::factorized_linear` on CUDA: generated kernels where there are some, PyTorch operators where not.

In a graph that is compiled it is PyTorch's operators, which Inductor fuses.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.library import Library

from noble_fx import schema
from noble_fx.codegen.plan import Layer
from noble_fx.errors import KernelError, Refusal
from noble_fx.ops import available, factorized
from noble_fx.ops.directions import Direction, laid_out
from noble_fx.ops.linear import present
from noble_fx.ops.routes import found
from noble_fx.runtime.factorized_kernels import FactorizedKernels, factorized_kernels
from noble_fx.torch_versions import tf32_products

_FORWARD = ("x", "base_down", "base_up", "bias", "down", "down_bias", "up")
_WIDE, _STRIDED = frozenset({"x", "z", "dy", "h"}), frozenset({"base_down", "base_up"})


def forward(flat: Sequence[Tensor | None], act_key: str, keep: bool) -> list[Tensor] | None:
    """y [.., N], and z and h where they are kept; None where PyTorch operators must do."""
    tensors: list[Any] = [tensor for tensor in flat if tensor is not None]
    less = ("factorized", act_key, keep, flat[3] is None, flat[5] is None, tensors[0].shape, len(tensors))
    route = found(less, tensors, lambda: _forward_direction(flat, act_key, keep))
    return None if route is None else route.run(tensors)


def backward(
    dy: Tensor, z: Tensor, h: Tensor, flat: Sequence[Tensor | None], act_key: str, needs: Sequence[bool]
) -> list[Tensor | None] | None:
    """A gradient for each operand, None where `needs` says no; or None as for `forward`."""
    x, base_down, base_up, _, down, _, up, *act = flat
    tensors: list[Any] = [dy, x, z, base_down, base_up, down, up, *act, h]
    less = ("factorized", act_key, tuple(needs), dy.shape)
    route = found(less, tensors, lambda: _backward_direction(tensors, act_key, needs))
    results = None if route is None else route.run(tensors)
    if results is None:
        return None
    answers = iter(results)
    return [next(answers) if need else None for need in needs]


def _forward_direction(flat: Sequence[Tensor | None], act_key: str, keep: bool) -> Direction | None:
    x, base_down, base_up, bias, down, down_bias, up, *act = flat
    kernels = _kernels(x, base_down, base_up, bias, down, down_bias, up, act, act_key)
    if kernels is None or x is None:
        return None
    names = [*_FORWARD, *kernels.act]
    present_names = [name for name, tensor in zip(names, flat, strict=True) if tensor is not None]
    tensors, prepare = laid_out(_WIDE, _STRIDED, present_names, [t for t in flat if t is not None])
    rows = x.shape[:-1]
    widths = {"y": kernels.layer.out_features[0], "z": kernels.outer.layer.in_features, "h": kernels.layer.rank}
    shapes = {name: (*rows, width) for name, width in widths.items()}
    return Direction(kernels, tensors, prepare, shapes, x.device, keep_h=keep)


def _backward_direction(tensors: Sequence[Tensor], act_key: str, needs: Sequence[bool]) -> Direction | None:
    dy, x, _, base_down, base_up, down, up, *act, _ = tensors
    bias = dy if needs[3] else None  # whether there is one counts, not which
    down_bias = dy if needs[5] else None
    frozen = tuple(at for at, need in enumerate(needs[factorized.FIXED :]) if not need)
    kernels = _kernels(x, base_down, base_up, bias, down, down_bias, up, act, act_key, frozen)
    if kernels is None:
        return None
    names = ["dy", "x", "z", "base_down", "base_up", "down", "up", *kernels.act, "h"]
    own, prepare = laid_out(_WIDE, _STRIDED, names, tensors)
    needed = dict(zip([*_FORWARD, *kernels.act], map(bool, needs), strict=True))
    return Direction(kernels, own, prepare, {"x": x.shape}, x.device, needed)


def _kernels(
    x: Any,
    base_down: Any,
    base_up: Any,
    bias: Any,
    down: Any,
    down_bias: Any,
    up: Any,
    act: Sequence[Any],
    act_key: str,
    frozen: tuple[int, ...] = (),
) -> FactorizedKernels | None:
    """The kernels for these tensors, or None where PyTorch operators must do."""
    gpu = available.gpu_of(x.device)
    n, k, rank, inputs = base_up.shape[0], base_down.shape[0], down.shape[0], x.shape[-1]
    shapes = (base_up, (n, k)), (base_down, (k, inputs)), (down, (rank, inputs)), (up, (n, rank))
    if gpu is None or not x.numel() or any(tuple(tensor.shape) != shape for tensor, shape in shapes):
        return None
    products = [tensor for tensor in (base_down, base_up, bias, down, down_bias, up) if tensor is not None]
    plain = Layer(inputs, (n,), rank, act_key, x.dtype, x.dtype, bias is not None, down_bias is not None, frozen)
    layer = available.layer_of(x, products, act, plain)
    if layer is None:
        return None
    kernels = _generated(layer, k, gpu, x.dtype == torch.float32 and tf32_products())
    return kernels if isinstance(kernels, FactorizedKernels) and not available.is_refused(layer, x.device) else None


@functools.lru_cache(maxsize=512)
def _generated(layer: Layer, base_rank: int, gpu: available.Gpu, tf32: bool) -> FactorizedKernels | Refusal:
    try:
        return factorized_kernels(available.of_parameters(layer), base_rank, gpu.backend, gpu.shared, tf32)
    except KernelError as error:
        return Refusal(str(error))


# --- registration -----------------------------------------------------------------------------------------------------


def _linear(*arguments: Any) -> Tensor:
    *fixed, act, act_key = arguments
    results = forward([*fixed, *act], act_key, False)
    return factorized.forward(*arguments)[0] if results is None else results[0]


def _linear_forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    *fixed, act, act_key = arguments
    results = forward([*fixed, *act], act_key, True)
    if results is None:
        return factorized.forward(*arguments)
    y, z, h = results
    return y, z, h


def _linear_backward(
    dy: Tensor,
    x: Tensor,
    z: Tensor,
    h: Tensor,
    base_down: Tensor,
    base_up: Tensor,
    down: Tensor,
    up: Tensor,
    act: Sequence[Tensor],
    act_key: str,
    needs: Sequence[bool],
) -> list[Tensor]:
    found_here = backward(dy, z, h, [x, base_down, base_up, None, down, None, up, *act], act_key, needs)
    if found_here is None:
        return factorized.backward(dy, x, z, h, base_down, base_up, down, up, act, act_key, needs)
    return present(found_here, dy)


def register(library: Library, device: str = "CUDA") -> None:
    """Make these the operators' implementations for a device."""
    library.impl("factorized_linear", _linear, device)
    library.impl("factorized_linear_forward", _linear_forward, device)
    library.impl("factorized_linear_backward", _linear_backward, device)


register(schema.library)
