"""From an operator's tensors to what runs them on a GPU: resolved once for their dtypes, sizes and strides, then found.

A route is one direction of one layer at one layout of its operands: its kernels, and the variant that is fastest here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from noble_fx.codegen.plan import GENERATOR, Layer
from noble_fx.errors import KernelError
from noble_fx.ops.available import kernels_for, refuse
from noble_fx.ops.operands import Operands, SiteOperands
from noble_fx.runtime.autotune import Variant, choose, is_final
from noble_fx.runtime.call import Call
from noble_fx.runtime.execute import Executor, Prepare
from noble_fx.runtime.layer_kernels import LayerKernels
from noble_fx.runtime.load import have_triton
from noble_fx.torch_state import layout_check
from noble_fx.torch_versions import tf32_products

Tensors = Sequence[Tensor | None]
Flat = list[Tensor | None]
MOST = 4096  # routes that are kept: a program of ever new sizes begins anew

_routes: dict[tuple[Any, ...], Route | None] = {}
_recent: dict[tuple[Any, ...], tuple[Callable[..., bool], Route | None]] = {}  # by less, and looked at in C++


def forward(flat: Tensors, count: int, act_key: str, keep_h: bool) -> list[Tensor] | None:
    """y [.., N] of each site, then h ([G, .., r] of a group) where it is kept; None where PyTorch operators must do.

    `flat` are the operands in the flat order (`operands.py`).
    """
    tensors: list[Any] = [tensor for tensor in flat if tensor is not None]
    less = (act_key, count, keep_h, flat[count + 1] is None, tensors[0].shape, len(tensors))
    route = _found(less, tensors, lambda: _forward_route(flat, count, act_key, keep_h))
    return None if route is None else route.run(tensors)


def backward(
    dy: Sequence[Tensor], h: Tensor, flat: Tensors, count: int, act_key: str, needs: Sequence[bool]
) -> Flat | None:
    """A gradient for each operand in the flat order, None where `needs` says no; or None as for `forward`."""
    tensors = [*dy, *_without_biases(flat, count), h]
    less = (act_key, count, tuple(needs), dy[0].shape)
    route = _found(less, tensors, lambda: _backward_route(dy, h, flat, count, act_key, needs))
    found = None if route is None else route.run(tensors)
    return None if found is None else [None if at is None else found[at] for at in route.places]  # type: ignore[union-attr]


def forget() -> None:
    """Resolve everything anew."""
    _routes.clear()
    _recent.clear()


def _found(less: tuple[Any, ...], tensors: Sequence[Tensor], resolve: Callable[[], Route | None]) -> Route | None:
    """The route of these tensors: the last one that was asked for with `less`, where it fits, or else by all that
    decides how they are run."""
    if tensors[0].dtype is torch.float32:
        less = (*less, tf32_products())
    recent = _recent.get(less)
    if recent is not None and recent[0](*tensors) and (recent[1] is None or not recent[1].refused):
        return recent[1]
    key = (less, *((t.dtype, t.device, t.shape, t.stride()) for t in tensors))
    if key not in _routes or ((known := _routes[key]) is not None and known.refused):
        if len(_routes) >= MOST:
            forget()
        _routes[key] = resolve()
    _recent[less] = layout_check(tensors), _routes[key]
    return _routes[key]


class Route:
    """One direction of one layer at one layout."""

    def __init__(
        self,
        kernels: LayerKernels,
        question: str,
        variants: tuple[list[Variant], Variant],
        device: torch.device,
        make: Callable[[Variant], Executor],
        places: Sequence[int | None] = (),
    ):
        """`places`: where among the results the gradient of each operand is."""
        self.places = places
        self._kernels, self._question, self._device = kernels, question, device
        self._variants, self._default = variants
        self._make = functools.cache(make)
        self._chosen: Executor | None = None
        self.refused = False

    def run(self, tensors: Sequence[Tensor]) -> list[Tensor] | None:
        """The results; None, and a warning once, where the compiler or the GPU refuses these kernels."""
        try:
            if self._chosen is not None:
                return self._chosen(tensors)
            variant = choose(
                self._question, self._variants, self._default, lambda v: self._make(v)(tensors), self._device
            )
            executor = self._make(variant)
            if is_final(self._question, self._variants):
                self._chosen = executor
            return executor(tensors)
        except KernelError as problem:
            self.refused = True
            refuse(self._kernels.layer, self._device, problem)
            return None


def _without_biases(flat: Sequence[Any], count: int) -> list[Any]:
    """x, W…, D…, U…, σ's: what backward reads."""
    return [*flat[: count + 1], *flat[2 * count + 1 : 3 * count + 1], *flat[4 * count + 1 :]]


# --- resolving -------------------------------------------------------------------------------------------------------


def _forward_route(flat: Tensors, count: int, act_key: str, keep_h: bool) -> Route | None:
    operands: Operands[Any] = Operands.from_flat(flat, count, act_key)
    first, x = operands.sites[0], operands.x
    kernels = kernels_for(operands, first.bias is not None, first.down_bias is not None) if x.numel() else None
    if kernels is None:
        return None
    names: list[Any] = [n for n, t in zip(names_of(kernels).flat(), flat, strict=True) if t is not None]
    tensors, prepare = _prepared(kernels.layer, names, [tensor for tensor in flat if tensor is not None])
    batch, rank, device = x.shape[:-1], kernels.layer.rank, x.device
    shapes = {kernels.layer.name("y", at): (*batch, n) for at, n in enumerate(kernels.layer.out_features)}
    shapes["h"] = (*batch, rank) if count == 1 else (count, *batch, rank)

    def make(variant: Variant) -> Executor:
        call = kernels.forward(tensors, variant, keep_h)
        return _executor(kernels, call, prepare, shapes, len(tensors["x"]), device)

    question = _question(kernels, "forward", len(tensors["x"]), device)
    return Route(kernels, question, kernels.forward_variants(), device, make)


def _backward_route(
    dy: Sequence[Tensor], h: Tensor, flat: Tensors, count: int, act_key: str, needs: Sequence[bool]
) -> Route | None:
    operands: Operands[Any] = Operands.from_flat(flat, count, act_key)
    wanted: Operands[Any] = Operands.from_flat(needs, count)
    biases, down_biases = any(site.bias for site in wanted.sites), any(site.down_bias for site in wanted.sites)
    of_act = zip(*(site.act for site in wanted.sites), strict=True)
    frozen = tuple(at for at, each in enumerate(of_act) if not any(each))
    x = operands.x
    kernels = kernels_for(operands, biases, down_biases, frozen) if x.numel() else None
    if kernels is None:
        return None
    names: list[Any] = names_of(kernels).flat()
    needed = dict(zip(names, map(bool, needs), strict=True))
    of_operands = [kernels.layer.name("dy", site) for site in range(count)] + _without_biases(names, count) + ["h"]
    tensors, prepare = _prepared(kernels.layer, of_operands, [*dy, *_without_biases(flat, count), h])
    shapes, device = {"x": x.shape}, x.device

    def make(variant: Variant) -> Executor:
        call = kernels.backward(tensors, needed, variant)
        return _executor(kernels, call, prepare, shapes, len(tensors["x"]), device)

    direction = f"backward {''.join('01'[need] for need in needed.values())}"
    question = _question(kernels, direction, len(tensors["x"]), device)
    variants = kernels.backward_variants(needed)
    answered = list(kernels.backward(tensors, needed, variants[1]).results)
    places = [answered.index(name) if needed[name] else None for name in names]
    return Route(kernels, question, variants, device, make, places)


@functools.lru_cache(maxsize=512)
def _names(layer: Layer, act: tuple[str, ...]) -> Operands[str]:
    def of_site(site: int) -> SiteOperands[str]:
        name = functools.partial(layer.name, site=site)
        matrices = name("weight"), name("bias"), name("down"), name("down_bias"), name("up")
        return SiteOperands(*matrices, tuple(map(name, act)))

    return Operands("x", tuple(map(of_site, range(layer.sites))))


def names_of(kernels: LayerKernels) -> Operands[str]:
    """What the kernels of a layer call its operands."""
    return _names(kernels.layer, kernels.act)


def _executor(
    kernels: LayerKernels,
    call: Call,
    prepare: Mapping[str, Prepare],
    shapes: Mapping[str, Sequence[int]],
    rows: int,
    device: torch.device,
) -> Executor:
    at = {name: index for index, name in enumerate(call.operands)}
    seen = call.seen_by_pytorch()
    # Kernels see addresses: rows of a contiguous tensor need no view of it.
    steps = [(at[name], step) for name, step in prepare.items() if at[name] in seen or step is not _as_rows]
    return Executor(kernels.plan, call, rows, device, steps, shapes)


def _prepared(
    layer: Layer, names: Sequence[str], tensors: Sequence[Any]
) -> tuple[dict[str, Tensor], dict[str, Prepare]]:
    """Operands laid out as kernels read them, and by which step each is, where one is needed."""
    wide = {"x", *(layer.name("dy", site) for site in range(layer.sites))}
    strided = {layer.name("weight", site) for site in range(layer.sites)}
    found: dict[str, Tensor] = {}
    steps: dict[str, Prepare] = {}
    for name, tensor in zip(names, tensors, strict=True):
        step = _step(tensor) if name in wide else None
        if name not in wide | strided and not tensor.is_contiguous():
            step = Tensor.contiguous
        found[name] = _shadow(tensor if step is None else step(tensor))
        if step is not None:
            steps[name] = step
    return found, steps


def _shadow(tensor: Tensor) -> Tensor:
    """Sizes and strides alone: a route must not keep anybody's numbers alive."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _step(tensor: Tensor) -> Prepare | None:
    """How [.., n] becomes rows that a kernel reads: any stride between them, none within."""
    if tensor.dim() == 2:
        return None if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else Tensor.contiguous
    return _as_rows if tensor.is_contiguous() else _as_dense_rows


def _as_rows(tensor: Tensor) -> Tensor:
    return tensor.view(-1, tensor.shape[-1])


def _as_dense_rows(tensor: Tensor) -> Tensor:
    rows = tensor.reshape(-1, tensor.shape[-1])
    return rows if rows.stride(-1) == 1 or rows.shape[-1] == 1 else rows.contiguous()


def _question(kernels: LayerKernels, direction: str, rows: int, device: torch.device) -> str:
    return f"{direction}, {1 << (rows - 1).bit_length()} rows or fewer, {kernels.title}, {_where(device)}"


@functools.cache
def _where(device: torch.device) -> str:
    """What a measured choice depends on besides the layer and its rows."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    triton = metadata.version("triton") if have_triton() else "none"
    return f"{name}, torch {torch.__version__}, triton {triton}, generator {GENERATOR}"
