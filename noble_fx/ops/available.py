"""Which layers have generated kernels here, and why others have none.

`why_no_kernel` says without a GPU what would be said with one about a σ, a rank and a dtype; the GPU itself has a word
too (`gpu_of`). What the compiler or a GPU once refused is not tried again. Whatever has no kernel runs as `linear.py`
writes it, which is right on every device.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from noble_fx.branches.base import Branch, live_branches
from noble_fx.codegen.plan import SHARED_BYTES, Layer
from noble_fx.codegen.sigma.in_kernel import activation
from noble_fx.errors import KernelError, Refusal
from noble_fx.ops.operands import Operands, SiteOperands
from noble_fx.runtime.layer_kernels import LayerKernels, layer_kernels
from noble_fx.runtime.load import have_triton
from noble_fx.torch_versions import tf32_products

T = TypeVar("T")
_OLDEST = (8, 0)  # the first NVIDIA GPUs with bfloat16 on tensor cores
_log = logging.getLogger(__name__)
_refused: dict[tuple[Layer, torch.device], str] = {}  # what the compiler or a GPU would not take and why: tried once


class Gpu(NamedTuple):
    """What of a GPU shapes a plan: Triton's backend, bytes of shared memory a block, copies by tensor descriptors."""

    backend: str
    shared: int
    descriptors: bool = False


_ELSEWHERE = Gpu("cuda", SHARED_BYTES["sm_80"])  # what is asked about where there is no GPU


def why_no_kernel(act_key: str, rank: int, dtype: torch.dtype, shape: tuple[int, int] | None = None) -> Refusal | None:
    """Why a branch with this σ has no generated kernels on a GPU, or None. Needs no GPU.

    With a layer's `shape` (N, K), also what a GPU of this process said when the kernels of such a layer were to run.
    """
    if not have_triton():
        return Refusal("triton is not installed")
    kernels = _kernels(Layer(rank, (rank,), rank, act_key, dtype, dtype), _ELSEWHERE, False)
    if isinstance(kernels, Refusal):
        return kernels
    for (layer, device), reason in _refused.items():
        asked = (layer.act, layer.rank, layer.dtype) == (act_key, rank, dtype)
        if asked and shape is not None and (layer.out_features, layer.in_features) == ((shape[0],), shape[1]):
            return Refusal(f"refused on {device}: {reason}")
    return None


@functools.lru_cache(maxsize=512)
def _kernels(layer: Layer, gpu: Gpu, tf32: bool) -> LayerKernels | Refusal:
    return generated(lambda: layer_kernels(of_parameters(layer), gpu.backend, gpu.shared, tf32, gpu.descriptors))


def generated(make: Callable[[], T]) -> T | Refusal:
    """What `make` generates, or why it generates nothing."""
    try:
        return make()
    except KernelError as error:
        return Refusal(str(error))
    except Exception as error:  # PyTorch operators are right where this package's own generator fails
        return Refusal(f"{type(error).__name__} while its kernels were generated: {error}; please report it")


def of_parameters(layer: Layer) -> Layer:
    """The layer, frozen tensors those of σ's parameters alone: buffers, the last, have no gradient in any case."""
    if not layer.frozen:
        return layer
    parameters = activation(layer).parameters
    return replace(layer, frozen=tuple(at for at in layer.frozen if at < parameters))


def kernels_on(device: torch.device, layer: Layer) -> LayerKernels | Refusal:
    """The kernels of a layer on this device, and where it runs none those that an sm_80 would have; or why none."""
    gpu = gpu_of(device)
    return _kernels(layer, gpu or _ELSEWHERE, gpu is not None and layer.dtype == torch.float32 and tf32_products())


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
    return Gpu("cuda", properties.shared_memory_per_multiprocessor - 1024, descriptors=properties.major >= 9)


def kernels_for(
    operands: Operands[Tensor], bias: bool, down_bias: bool, frozen: tuple[int, ...] = ()
) -> LayerKernels | None:
    """The kernels for these tensors, or None where PyTorch operators must do; `frozen` as in `Layer`."""
    x, sites = operands.x, operands.sites
    gpu = gpu_of(x.device)
    if gpu is None:
        return None
    columns = tuple(site.weight.shape[0] for site in sites)
    products = [tensor for site in sites for tensor in site[:-1] if tensor is not None]
    rank = sites[0].down.shape[0]
    layer = layer_of(x, products, operands.act(), Layer(x.shape[-1], columns, rank, operands.key, x.dtype, x.dtype))
    if layer is None or not all(_fits(site, x.shape[-1], columns[at], rank) for at, site in enumerate(sites)):
        return None  # PyTorch's operators have their own words for that
    layer = replace(layer, bias=bias, down_bias=down_bias, frozen=frozen)
    tf32 = x.dtype == torch.float32 and tf32_products()
    kernels = _kernels(layer, gpu, tf32)
    return kernels if isinstance(kernels, LayerKernels) and not is_refused(layer, x.device) else None


def layer_of(x: Tensor, products: Sequence[Tensor], act: Sequence[Tensor], layer: Layer) -> Layer | None:
    """The layer with the dtype of σ's tensors; None where dtypes or devices are several."""
    stored = {tensor.dtype for tensor in act if tensor.is_floating_point()} or {x.dtype}
    alike = all(tensor.dtype == x.dtype for tensor in products)
    if not alike or len(stored) > 1 or any(tensor.device != x.device for tensor in (*products, *act)):
        return None
    return replace(layer, act_dtype=stored.pop())


def is_refused(layer: Layer, device: torch.device) -> bool:
    """Whether the compiler or the GPU once refused the kernels of such a layer."""
    return (_asked(layer), device) in _refused


def _fits(site: SiteOperands[Tensor], inputs: int, columns: int, rank: int) -> bool:
    """Whether the matrices of a site have the shapes that a kernel takes for granted."""
    shapes = (columns, inputs), (columns,), (rank, inputs), (rank,), (columns, rank)
    pairs = zip(site[:-1], shapes, strict=True)
    return all(tensor is None or tensor.shape == shape for tensor, shape in pairs)


def _asked(layer: Layer) -> Layer:
    """The layer as it is known when it is refused: forward's and backward's, whichever gradients are needed."""
    return replace(layer, bias=False, down_bias=False, frozen=())


def refuse(layer: Layer, device: torch.device, problem: KernelError) -> None:
    """Run such layers by PyTorch's operators from now on, and say so once.

    Raises `KernelError` instead where a branch of that kind was made with fuse="require".
    """
    dtype, columns = str(layer.dtype).removeprefix("torch."), " + ".join(map(str, layer.out_features))
    what = f"σ {layer.act!r}, rank {layer.rank}, {layer.in_features} → {columns}, {dtype}, on {device}"
    if any(_is_required(layer, branch) for branch in live_branches()):
        raise KernelError(f"fuse='require': {what}: {problem}. Use fuse=True for PyTorch operators there") from problem
    _refused[_asked(layer), device] = str(problem)
    _log.warning("PyTorch operators are used instead of generated kernels: %s: %s", what, problem)


def _is_required(layer: Layer, branch: Branch) -> bool:
    own = (branch.key, branch.width, branch.in_features, (branch.out_features,), branch.config.fuse)
    return own == (layer.act, layer.rank, layer.in_features, layer.out_features, "require")
