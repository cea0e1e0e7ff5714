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
from noble_fx.errors import Refusal
from noble_fx.ops import available, factorized
from noble_fx.ops.directions import Direction, laid_out
from noble_fx.ops.factorized import Factorized
from noble_fx.ops.linear import present
from noble_fx.ops.routes import found
from noble_fx.runtime.factorized_kernels import FactorizedKernels, factorized_kernels
from noble_fx.torch_versions import tf32_products

_WIDE, _STRIDED = frozenset({"x", "z", "dy", "h"}), frozenset({"base_down", "base_up"})


def forward(of: Factorized, act_key: str, keep: bool) -> list[Tensor] | None:
    """y [.., N], and z and h where they are kept; None where PyTorch operators must do."""
    tensors: list[Any] = [tensor for tensor in of.flat() if tensor is not None]
    less = ("factorized", act_key, keep, of.bias is None, of.down_bias is None, of.x.shape, len(tensors))
    route = found(less, tensors, lambda: _forward_direction(of, act_key, keep))
    return None if route is None else route.run(tensors)


def backward(
    dy: Tensor, z: Tensor, h: Tensor, of: Factorized, act_key: str, needs: Sequence[bool]
) -> list[Tensor | None] | None:
    """A gradient for each operand, None where `needs` says no; or None as for `forward`."""
    tensors: list[Any] = [dy, z, *(tensor for tensor in of.flat() if tensor is not None), h]
    less = ("factorized", act_key, tuple(needs), dy.shape)
    route = found(less, tensors, lambda: _backward_direction(tensors, of, act_key, needs))
    results = None if route is None else route.run(tensors)
    if results is None:
        return None
    answers = iter(results)
    return [next(answers) if need else None for need in needs]


def _forward_direction(of: Factorized, act_key: str, keep: bool) -> Direction | None:
    kernels = _kernels(of, act_key)
    if kernels is None:
        return None
    there = {name: tensor for name, tensor in zip(_names(kernels), of.flat(), strict=True) if tensor is not None}
    tensors, prepare = laid_out(_WIDE, _STRIDED, list(there), list(there.values()))
    widths = {"y": kernels.layer.out_features[0], "z": kernels.outer.layer.in_features, "h": kernels.layer.rank}
    shapes = {name: (*of.x.shape[:-1], width) for name, width in widths.items()}
    return Direction(kernels, tensors, prepare, shapes, of.x.device, keep_h=keep)


def _backward_direction(
    tensors: Sequence[Tensor], of: Factorized, act_key: str, needs: Sequence[bool]
) -> Direction | None:
    need, dy = Factorized.of_flat(list(map(bool, needs))), tensors[0]
    frozen = tuple(at for at, wanted in enumerate(need.act) if not wanted)
    # Whether there is a bias counts, not which.
    like = of._replace(bias=dy if need.bias else None, down_bias=dy if need.down_bias else None)
    kernels = _kernels(like, act_key, frozen)
    if kernels is None:
        return None
    of_operands = [name for name, tensor in zip(_names(kernels), of.flat(), strict=True) if tensor is not None]
    own, prepare = laid_out(_WIDE, _STRIDED, ["dy", "z", *of_operands, "h"], tensors)
    needed = dict(zip(_names(kernels), need.flat(), strict=True))
    return Direction(kernels, own, prepare, {"x": of.x.shape}, of.x.device, needed)


def _names(kernels: FactorizedKernels) -> list[str]:
    """What the kernels call the operands."""
    return [*Factorized._fields[:-1], *kernels.act]


def _kernels(of: Factorized, act_key: str, frozen: tuple[int, ...] = ()) -> FactorizedKernels | None:
    """The kernels for these tensors, or None where PyTorch operators must do."""
    x, gpu = of.x, available.gpu_of(of.x.device)
    n, k, rank, inputs = of.base_up.shape[0], of.base_down.shape[0], of.down.shape[0], x.shape[-1]
    shapes = (of.base_up, (n, k)), (of.base_down, (k, inputs)), (of.down, (rank, inputs)), (of.up, (n, rank))
    if gpu is None or not x.numel() or any(tuple(tensor.shape) != shape for tensor, shape in shapes):
        return None
    products = [tensor for tensor in of[1:-1] if tensor is not None]
    biases = of.bias is not None, of.down_bias is not None
    plain = Layer(inputs, (n,), rank, act_key, x.dtype, x.dtype, *biases, frozen)
    layer = available.layer_of(x, products, of.act, plain)
    if layer is None:
        return None
    kernels = _generated(layer, k, gpu, x.dtype == torch.float32 and tf32_products())
    return kernels if isinstance(kernels, FactorizedKernels) and not available.is_refused(layer, x.device) else None


@functools.lru_cache(maxsize=512)
def _generated(layer: Layer, base_rank: int, gpu: available.Gpu, tf32: bool) -> FactorizedKernels | Refusal:
    return available.generated(
        lambda: factorized_kernels(available.of_parameters(layer), base_rank, gpu.backend, gpu.shared, tf32)
    )


# --- registration -----------------------------------------------------------------------------------------------------


def _linear(*arguments: Any) -> Tensor:
    results = forward(*Factorized.read(arguments), False)
    return factorized.forward(*arguments)[0] if results is None else results[0]


def _linear_forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    results = forward(*Factorized.read(arguments), True)
    if results is None:
        return factorized.forward(*arguments)
    y, z, h = results
    return y, z, h


def _linear_backward(*arguments: Any) -> list[Tensor]:
    dy, z, h, of, act_key, needs = factorized.read_backward(arguments)
    gradients = backward(dy, z, h, of, act_key, needs)
    return factorized.backward(*arguments) if gradients is None else present(gradients, dy)


def register(library: Library, device: str = "CUDA") -> None:
    """Make these the operators' implementations for a device."""
    library.impl("factorized_linear", _linear, device)
    library.impl("factorized_linear_forward", _linear_forward, device)
    library.impl("factorized_linear_backward", _linear_backward, device)


register(schema.library)
