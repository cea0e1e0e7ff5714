"""The operators on CUDA: generated kernels where there are some, PyTorch operators where not.

`why_no_kernel` says without a GPU what would be said with one about a σ, a rank and a dtype; the GPU itself has a word
too (`gpu_of`). Whatever has no kernel runs as `operator.py` writes it, which is right on every device.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.library import Library

from noble_fx import schema
from noble_fx.codegen.plan import GENERATOR, SHARED_BYTES, Layer
from noble_fx.errors import KernelError
from noble_fx.ops import linear
from noble_fx.ops.autograd import places
from noble_fx.ops.linear import present
from noble_fx.ops.linear_group import by_site
from noble_fx.runtime.autotune import Way, choose
from noble_fx.runtime.layer_kernels import LayerKernels, Row, layer_kernels
from noble_fx.runtime.load import have_triton
from noble_fx.torch_versions import tf32_products

_OLDEST = (8, 0)  # the first NVIDIA GPUs with bfloat16 on tensor cores
_log = logging.getLogger(__name__)
_refused: set[str] = set()  # titles of what the compiler or the GPU would not take, so that it is tried once
Answer = TypeVar("Answer")


class Gpu(NamedTuple):
    """What of a GPU shapes a plan: Triton's backend, and bytes of shared memory a block."""

    backend: str
    shared: int


def why_no_kernel(act_key: str, rank: int, dtype: torch.dtype) -> str:
    """Why a branch with this σ has no generated kernels on a GPU; "" where it has. Needs no GPU."""
    if not have_triton():
        return "triton is not installed"
    found = _kernels(Layer(rank, (rank,), rank, act_key, dtype, dtype), Gpu("cuda", SHARED_BYTES["sm_80"]), False)
    return found if isinstance(found, str) else ""


@functools.lru_cache(maxsize=512)
def _kernels(layer: Layer, gpu: Gpu, tf32: bool) -> LayerKernels | str:
    try:
        return layer_kernels(layer, gpu.backend, gpu.shared, tf32)
    except KernelError as reason:
        return str(reason)


@functools.cache
def gpu_of(device: torch.device) -> Gpu | None:
    """What kernels are generated for on this device, or None where none can run."""
    if device.type != "cuda" or not have_triton():
        return None
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return Gpu("hip", properties.shared_memory_per_block)
    if (properties.major, properties.minor) < _OLDEST:
        return None
    # A block may have all of a multiprocessor's shared memory but the KiB that the system keeps for each block.
    return Gpu("cuda", properties.shared_memory_per_multiprocessor - 1024)


def kernels_for(row: Row, sites: int, act_key: str, bias: bool, down_bias: bool) -> LayerKernels | None:
    """The kernels for these tensors, or None where PyTorch operators must do."""
    x, *others = row
    assert x is not None
    weights, down, act = others[:sites], others[2 * sites], others[5 * sites :]
    assert down is not None
    gpu = gpu_of(x.device)
    stored = {one.dtype for one in act if one is not None and one.is_floating_point()} or {x.dtype}
    given = [one for one in row if one is not None]
    alike = all(one is None or one.dtype == x.dtype for one in others[: 5 * sites])
    if gpu is None or not alike or len(stored) > 1 or any(one.device != x.device for one in given):
        return None
    columns = tuple(weight.shape[0] for weight in weights if weight is not None)
    layer = Layer(x.shape[-1], columns, down.shape[0], act_key, x.dtype, stored.pop(), bias, down_bias)
    tf32 = x.dtype == torch.float32 and tf32_products()
    found = _kernels(layer, gpu, tf32)
    return found if isinstance(found, LayerKernels) and found.title not in _refused else None


def forward(row: Row, sites: int, act_key: str) -> tuple[list[Tensor], Tensor] | None:
    """y [.., N] of each site and h [G, .., r], by generated kernels; None where PyTorch operators must do."""
    kernels = kernels_for(row, sites, act_key, row[1 + sites] is not None, row[1 + 3 * sites] is not None)
    x = row[0]
    if kernels is None or x is None:
        return None
    flat, batch = [x.reshape(-1, x.shape[-1]), *row[1:]], x.shape[:-1]
    found = _chosen(kernels, "forward", kernels.forward_ways(), x, lambda way: kernels.forward(flat, way))
    if found is None:
        return None
    y, h = found
    return [one.view(*batch, one.shape[-1]) for one in y], h.view(sites, *batch, h.shape[-1])


def backward(
    dy: Sequence[Tensor], x: Tensor, h: Tensor, rest: Row, sites: int, act_key: str, needs: Sequence[bool]
) -> list[Tensor | None] | None:
    """One gradient for each tensor of the row x, *rest, None where `needs` says no; or None as for `forward`."""
    row = [x.reshape(-1, x.shape[-1]), *rest]
    biases, down_biases = any(needs[1 + sites : 1 + 2 * sites]), any(needs[1 + 3 * sites : 1 + 4 * sites])
    kernels = kernels_for(row, sites, act_key, biases, down_biases)
    if kernels is None:
        return None
    rows, h = [one.reshape(-1, one.shape[-1]) for one in dy], h.reshape(sites, -1, h.shape[-1])
    ways = kernels.backward_ways(dict(zip(kernels.names(), needs, strict=True)))
    direction = f"backward {''.join('01'[need] for need in needs)}"
    found = _chosen(kernels, direction, ways, x, lambda way: kernels.backward(rows, h, row, needs, way))
    if found is not None and found[0] is not None:
        found[0] = found[0].view(x.shape)
    return found


def _chosen(
    kernels: LayerKernels, direction: str, ways: tuple[list[Way], Way], x: Tensor, run: Callable[[Way], Answer]
) -> Answer | None:
    """What the fastest way answers; None, and a warning once, where the GPU or the compiler refuses the kernels."""
    rows, (possible, way) = x.numel() // x.shape[-1], ways
    try:
        if rows:
            question = f"{direction}, {1 << (rows - 1).bit_length()} rows or fewer, {kernels.title}, {_where(x.device)}"
            way = choose(question, possible, way, run, x.device)
        return run(way)
    except KernelError as problem:
        _refused.add(kernels.title)
        _log.warning("PyTorch operators are used instead of generated kernels: %s", problem)
        return None


@functools.cache
def _where(device: torch.device) -> str:
    """What a measured choice depends on besides the layer and its rows."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    triton = metadata.version("triton") if have_triton() else "none"
    return f"{name}, torch {torch.__version__}, triton {triton}, generator {GENERATOR}"


# --- the operators ---------------------------------------------------------------------------------------------------


def _linear_forward(x, weight, bias, down, down_bias, up, act, act_key):
    found = forward([x, weight, bias, down, down_bias, up, *act], 1, act_key)
    if found is None:
        return linear.forward(x, weight, bias, down, down_bias, up, act, act_key)
    y, h = found
    return y[0], h[0]


def _linear(*inputs: Any) -> Tensor:
    return _linear_forward(*inputs)[0]


def _linear_backward(dy, x, h, weight, down, up, act, act_key, needs):
    found = backward([dy], x, h, [weight, None, down, None, up, *act], 1, act_key, needs)
    if found is None:
        return linear.backward(dy, x, h, weight, down, up, act, act_key, needs)
    return present(found, dy)


def _group_forward(x, weight, bias, down, down_bias, up, act, act_key):
    count = len(weight)
    absent = [None] * count
    found = forward([x, *weight, *(bias or absent), *down, *(down_bias or absent), *up, *act], count, act_key)
    if found is None:  # too wide for one kernel, perhaps, but not each by itself
        sites = by_site(weight, bias, down, down_bias, up, act=act)
        each = [_linear_forward(x, w, b, d, d_bias, u, sigma, act_key) for w, b, d, d_bias, u, sigma in sites]
        return [y for y, _ in each], torch.stack([h for _, h in each])
    return found


def _linear_group(*inputs: Any) -> list[Tensor]:
    return _group_forward(*inputs)[0]


def _group_backward(dy, x, h, weight, down, up, act, act_key, needs):
    count = len(weight)
    absent = [None] * count
    found = backward(dy, x, h, [*weight, *absent, *down, *absent, *up, *act], count, act_key, needs)
    if found is None:
        found = [None] * len(needs)
        for i, (dy_i, h_i, w, d, u, sigma) in enumerate(by_site(dy, h, weight, down, up, act=act)):
            own = places([i], count, len(needs))
            asked = [needs[place] for place in own]
            dx, *rest = _linear_backward(dy_i, x, h_i, w, d, u, sigma, act_key, asked)
            if needs[0]:
                found[0] = dx if found[0] is None else found[0].add_(dx)
            for place, gradient in zip(own[1:], rest, strict=True):
                found[place] = gradient
    return present(found, x)


def register(library: Library, device: str = "CUDA") -> None:
    """Make these the operators' implementations for a device."""
    library.impl("linear_group", _linear_group, device)
    library.impl("linear_group_forward", _group_forward, device)
    library.impl("linear_group_backward", _group_backward, device)
    library.impl("linear", _linear, device)
    library.impl("linear_forward", _linear_forward, device)
    library.impl("linear_backward", _linear_backward, device)


register(schema.library)
