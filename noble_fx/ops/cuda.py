"""The operators on CUDA: generated kernels where there are some, PyTorch operators where not.

`why_no_kernel` says without a GPU what would be said with one about a σ, a rank and a dtype; the GPU itself has a word
too (`gpu_of`). Whatever has no kernel runs as `linear.py` writes it, which is right on every device.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import metadata
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.library import Library

from noble_fx import schema
from noble_fx.branches.base import Branch, live_branches
from noble_fx.codegen.plan import GENERATOR, SHARED_BYTES, Layer
from noble_fx.codegen.sigma.in_kernel import activation
from noble_fx.errors import KernelError, Refusal
from noble_fx.ops import linear
from noble_fx.ops.linear import present, rows_of
from noble_fx.ops.operands import Operands, SiteOperands
from noble_fx.runtime.autotune import Variant, choose
from noble_fx.runtime.layer_kernels import LayerKernels, layer_kernels
from noble_fx.runtime.load import have_triton
from noble_fx.torch_versions import tf32_products

_OLDEST = (8, 0)  # the first NVIDIA GPUs with bfloat16 on tensor cores
_log = logging.getLogger(__name__)
_refused: dict[tuple[Layer, torch.device], str] = {}  # what the compiler or a GPU would not take and why: tried once
Answer = TypeVar("Answer")


class Gpu(NamedTuple):
    """What of a GPU shapes a plan: Triton's backend, and bytes of shared memory a block."""

    backend: str
    shared: int


def why_no_kernel(act_key: str, rank: int, dtype: torch.dtype, shape: tuple[int, int] | None = None) -> Refusal | None:
    """Why a branch with this σ has no generated kernels on a GPU, or None. Needs no GPU.

    With a layer's `shape` (N, K), also what a GPU of this process said when the kernels of such a layer were to run.
    """
    if not have_triton():
        return Refusal("triton is not installed")
    kernels = _kernels(Layer(rank, (rank,), rank, act_key, dtype, dtype), Gpu("cuda", SHARED_BYTES["sm_80"]), False)
    if isinstance(kernels, Refusal):
        return kernels
    for (layer, device), reason in _refused.items():
        asked = (layer.act, layer.rank, layer.dtype) == (act_key, rank, dtype)
        if asked and shape is not None and (layer.out_features, layer.in_features) == ((shape[0],), shape[1]):
            return Refusal(f"refused on {device}: {reason}")
    return None


@functools.lru_cache(maxsize=512)
def _kernels(layer: Layer, gpu: Gpu, tf32: bool) -> LayerKernels | Refusal:
    try:
        if layer.frozen:  # the last are buffers, which have no gradient in any case
            parameters = activation(layer).parameters
            layer = replace(layer, frozen=tuple(at for at in layer.frozen if at < parameters))
        return layer_kernels(layer, gpu.backend, gpu.shared, tf32)
    except KernelError as error:
        return Refusal(str(error))
    except Exception as error:  # PyTorch operators are right where this package's own generator fails
        return Refusal(f"{type(error).__name__} while its kernels were generated: {error}; please report it")


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


def kernels_for(
    operands: Operands[Tensor], bias: bool, down_bias: bool, frozen: tuple[int, ...] = ()
) -> LayerKernels | None:
    """The kernels for these tensors, or None where PyTorch operators must do; `frozen` as in `Layer`."""
    x, sites, act = operands.x, operands.sites, operands.act()
    gpu = gpu_of(x.device)
    if gpu is None:
        return None
    stored = {tensor.dtype for tensor in act if tensor.is_floating_point()} or {x.dtype}
    products = [tensor for site in sites for tensor in site[:-1] if tensor is not None]
    alike = all(tensor.dtype == x.dtype for tensor in products)
    if not alike or len(stored) > 1 or any(tensor.device != x.device for tensor in (*products, *act)):
        return None
    columns, rank = tuple(site.weight.shape[0] for site in sites), sites[0].down.shape[0]
    layer = Layer(x.shape[-1], columns, rank, operands.key, x.dtype, stored.pop(), bias, down_bias, frozen)
    tf32 = x.dtype == torch.float32 and tf32_products()
    kernels = _kernels(layer, gpu, tf32)
    return kernels if isinstance(kernels, LayerKernels) and (_asked(layer), x.device) not in _refused else None


@functools.lru_cache(maxsize=512)
def _names(layer: Layer, act: tuple[str, ...]) -> Operands[str]:
    """What the kernels of a layer call its operands; `act` is what they call σ's tensors."""

    def of_site(site: int) -> SiteOperands[str]:
        name = functools.partial(layer.name, site=site)
        matrices = name("weight"), name("bias"), name("down"), name("down_bias"), name("up")
        return SiteOperands(*matrices, tuple(map(name, act)))

    return Operands("x", tuple(map(of_site, range(layer.sites))))


def _named(names: Operands[str], operands: Operands[Tensor]) -> dict[str, Tensor]:
    """The operands that are there by their names, x [.., K] as rows [S, K]."""
    pairs = zip(names.flat(), operands.flat(), strict=True)
    named: dict[Any, Tensor] = {name: tensor for name, tensor in pairs if tensor is not None}
    return named | {"x": rows_of(operands.x)}


def _needed(names: Operands[str], needs: Operands[bool]) -> dict[str, bool]:
    """Which gradients are needed, by the names of their operands."""
    pairs: Any = zip(names.flat(), needs.flat(), strict=True)
    return dict(pairs)


def forward(operands: Operands[Tensor]) -> tuple[list[Tensor], Tensor] | None:
    """y [.., N] of each site and h [G, .., r], by generated kernels; None where PyTorch operators must do."""
    first, batch = operands.sites[0], operands.x.shape[:-1]
    kernels = kernels_for(operands, first.bias is not None, first.down_bias is not None)
    if kernels is None:
        return None
    named = _named(_names(kernels.layer, kernels.act), operands)
    results = _chosen(
        kernels, "forward", kernels.forward_variants(), named["x"], lambda variant: kernels.forward(named, variant)
    )
    if results is None:
        return None
    y, h = results
    return [rows.view(*batch, rows.shape[-1]) for rows in y], h.view(len(y), *batch, h.shape[-1])


def backward(
    dy: Sequence[Tensor], h: Tensor, operands: Operands[Tensor], needs: Operands[bool]
) -> Operands[Tensor | None] | None:
    """A gradient for each operand, biases included, None where `needs` says no; or None as for `forward`."""
    biases, down_biases = any(site.bias for site in needs.sites), any(site.down_bias for site in needs.sites)
    needed_of_act = zip(*(site.act for site in needs.sites), strict=True)
    frozen = tuple(at for at, each in enumerate(needed_of_act) if not any(each))
    kernels = kernels_for(operands, biases, down_biases, frozen)
    if kernels is None:
        return None
    names = _names(kernels.layer, kernels.act)
    named, needed = _named(names, operands), _needed(names, needs)
    rows, h = [rows_of(tensor) for tensor in dy], h.reshape(len(dy), -1, h.shape[-1])
    gradients = _chosen(
        kernels,
        f"backward {''.join('01'[need] for need in needed.values())}",
        kernels.backward_variants(needed),
        named["x"],
        lambda variant: kernels.backward(rows, h, named, needed, variant),
    )
    if gradients is None:
        return None
    if "x" in gradients:
        gradients["x"] = gradients["x"].view(operands.x.shape)
    return names.map(gradients.get)


def _chosen(
    kernels: LayerKernels,
    direction: str,
    variants: tuple[list[Variant], Variant],
    x: Tensor,
    run: Callable[[Variant], Answer],
) -> Answer | None:
    """What the fastest variant answers; None, and a warning once, where the GPU or the compiler refuses the kernels.

    Raises `KernelError` instead where a branch of that kind was made with fuse="require".
    """
    rows, (possible, variant) = len(x), variants
    try:
        if rows:
            question = f"{direction}, {1 << (rows - 1).bit_length()} rows or fewer, {kernels.title}, {_where(x.device)}"
            variant = choose(question, possible, variant, run, x.device)
        return run(variant)
    except KernelError as problem:
        _refuse(kernels.layer, x.device, problem)
        return None


def _asked(layer: Layer) -> Layer:
    """The layer as it is known when it is refused: forward's and backward's, whichever gradients are needed."""
    return replace(layer, bias=False, down_bias=False, frozen=())


def _refuse(layer: Layer, device: torch.device, problem: KernelError) -> None:
    dtype, columns = str(layer.dtype).removeprefix("torch."), " + ".join(map(str, layer.out_features))
    what = f"σ {layer.act!r}, rank {layer.rank}, {layer.in_features} → {columns}, {dtype}, on {device}"
    if any(_is_required(layer, branch) for branch in live_branches()):
        raise KernelError(f"fuse='require': {what}: {problem}. Use fuse=True for PyTorch operators there") from problem
    _refused[_asked(layer), device] = str(problem)
    _log.warning("PyTorch operators are used instead of generated kernels: %s: %s", what, problem)


def _is_required(layer: Layer, branch: Branch) -> bool:
    own = (branch.key, branch.rank, branch.in_features, (branch.out_features,), branch.config.fuse)
    return own == (layer.act, layer.rank, layer.in_features, layer.out_features, "require")


@functools.cache
def _where(device: torch.device) -> str:
    """What a measured choice depends on besides the layer and its rows."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    triton = metadata.version("triton") if have_triton() else "none"
    return f"{name}, torch {torch.__version__}, triton {triton}, generator {GENERATOR}"


# --- the operators ---------------------------------------------------------------------------------------------------


def _forward_of_site(operands: Operands[Tensor]) -> tuple[Tensor, Tensor]:
    results = forward(operands)
    if results is None:
        return linear.forward(*operands.linear_args())
    (y,), (h,) = results
    return y, h


def _gradients_of_site(
    dy: Tensor, h: Tensor, operands: Operands[Tensor], needs: Operands[bool]
) -> Operands[Tensor | None]:
    gradients = backward([dy], h, operands, needs)
    return linear.gradients(dy, h, operands, needs) if gradients is None else gradients


def _linear_forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    return _forward_of_site(Operands.of_linear(*arguments))


def _linear(*arguments: Any) -> Tensor:
    return _linear_forward(*arguments)[0]


def _linear_backward(dy, x, h, weight, down, up, act, act_key, needs):
    operands = Operands.of_linear(x, weight, None, down, None, up, act, act_key)
    return present(_gradients_of_site(dy, h, operands, Operands.from_flat(needs, 1)), dy)


def _group_forward(*arguments: Any) -> tuple[list[Tensor], Tensor]:
    operands: Operands[Tensor] = Operands.of_group(*arguments)
    results = forward(operands)
    if results is None:  # too wide for one kernel, perhaps, but not each by itself
        y, h = zip(*map(_forward_of_site, operands.split()), strict=True)
        return list(y), torch.stack(h)
    return results


def _linear_group(*arguments: Any) -> list[Tensor]:
    return _group_forward(*arguments)[0]


def _group_backward(dy, x, h, weight, down, up, act, act_key, needs):
    operands = Operands.of_group(x, weight, [], down, [], up, act, act_key)
    wanted = Operands.from_flat(needs, len(weight))
    gradients = backward(dy, h, operands, wanted)
    if gradients is None:
        each = list(map(_gradients_of_site, dy, h, operands.split(), wanted.split()))
        gradients = Operands(_sum([site.x for site in each]), Operands.join(each).sites)
    return present(gradients, x)


def _sum(gradients: Sequence[Tensor | None]) -> Tensor | None:
    """The sum, in the first of them; None where none is needed."""
    total = None
    for gradient in gradients:
        total = gradient if total is None or gradient is None else total.add_(gradient)
    return total


def register(library: Library, device: str = "CUDA") -> None:
    """Make these the operators' implementations for a device."""
    library.impl("linear_group", _linear_group, device)
    library.impl("linear_group_forward", _group_forward, device)
    library.impl("linear_group_backward", _group_backward, device)
    library.impl("linear", _linear, device)
    library.impl("linear_forward", _linear_forward, device)
    library.impl("linear_backward", _linear_backward, device)


register(schema.library)
