"""One direction of one call: which kernels it has, in which variants, and what it does in each, whoever will run it.

Operands may be tensors with numbers (`routes.py`) or a tracer's (`traced.py`): only sizes, strides and dtypes are read.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from noble_fx.codegen.plan import GENERATOR, Layer
from noble_fx.ops.available import kernels_for
from noble_fx.ops.operands import Operands, SiteOperands
from noble_fx.runtime.autotune import Variant
from noble_fx.runtime.call import Call
from noble_fx.runtime.execute import Prepare
from noble_fx.runtime.layer_kernels import DESCRIPTORS, LayerKernels
from noble_fx.runtime.load import have_triton

Tensors = Sequence[Tensor | None]


@dataclass(frozen=True)
class Direction:
    """Forward where `needed` is None, else the backward that gives the gradients that it says."""

    kernels: LayerKernels
    operands: Mapping[str, Tensor]  # laid out as kernels read them, [rows, n]
    prepare: Mapping[str, Prepare]  # by which step each is so laid out, where one is needed
    shapes: Mapping[str, Sequence[Any]]  # of the results that are not to be [rows, n]
    device: torch.device
    needed: Mapping[str, bool] | None = None
    keep_h: bool = True

    @property
    def rows(self) -> Any:
        """How many; a symbol where sizes are symbols."""
        return self.operands["x"].shape[0]

    @property
    def variants(self) -> tuple[list[Variant], Variant]:
        """Every variant that these operands may be run in, and the default."""
        needed, kernels = self.needed, self.kernels
        every, default = kernels.forward_variants() if needed is None else kernels.backward_variants(needed)
        return every if self._may_be_described() else [v for v in every if DESCRIPTORS not in v], default

    def _may_be_described(self) -> bool:
        """Whether rows of all that kernels read by stride begin at multiples of 16 bytes, as tensor descriptors ask."""
        layer = self.kernels.layer
        strided = {"x", *(layer.name(name, site) for site in range(layer.sites) for name in ("dy", "weight"))}
        rows = [self.operands[name] for name in strided if name in self.operands]
        return all(t.stride(0) > 0 and t.stride(0) * t.element_size() % 16 == 0 for t in rows)

    def call(self, variant: Variant) -> Call:
        """What it does."""
        if self.needed is None:
            return self.kernels.forward(self.operands, variant, self.keep_h)
        return self.kernels.backward(self.operands, self.needed, variant)

    def question(self, rows: int) -> str:
        """What the fastest variant at so many rows is remembered by."""
        word = "forward" if self.needed is None else f"backward {''.join('01'[need] for need in self.needed.values())}"
        fewer = 1 << (rows - 1).bit_length()
        return f"{word}, {fewer} rows or fewer, {self.kernels.title}, {_where(self.device)}"

    def shadowed(self) -> Direction:
        """The same of sizes and strides alone: what is kept must not keep anybody's numbers alive."""
        return replace(self, operands={name: _shadow(tensor) for name, tensor in self.operands.items()})


def forward_direction(flat: Tensors, count: int, act_key: str, keep_h: bool) -> Direction | None:
    """Forward of these operands in the flat order (`operands.py`); None where PyTorch operators must do."""
    operands: Operands[Any] = Operands.from_flat(flat, count, act_key)
    first, x = operands.sites[0], operands.x
    kernels = kernels_for(operands, first.bias is not None, first.down_bias is not None) if x.numel() else None
    if kernels is None:
        return None
    layer = kernels.layer
    names: list[Any] = [name for name, t in zip(names_of(kernels).flat(), flat, strict=True) if t is not None]
    tensors, prepare = laid_out(*_read(layer), names, [tensor for tensor in flat if tensor is not None])
    batch, rank = x.shape[:-1], layer.rank
    shapes = {layer.name("y", at): (*batch, n) for at, n in enumerate(layer.out_features)}
    shapes["h"] = (*batch, rank) if count == 1 else (count, *batch, rank)
    return Direction(kernels, tensors, prepare, shapes, x.device, keep_h=keep_h)


def backward_direction(
    dy: Sequence[Tensor], h: Tensor, flat: Tensors, count: int, act_key: str, needs: Sequence[bool]
) -> Direction | None:
    """Backward of these operands in the flat order (`operands.py`); None where PyTorch operators must do."""
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
    of_operands = [kernels.layer.name("dy", site) for site in range(count)] + without_biases(names, count) + ["h"]
    tensors, prepare = laid_out(*_read(kernels.layer), of_operands, [*dy, *without_biases(flat, count), h])
    needed = dict(zip(names, map(bool, needs), strict=True))
    return Direction(kernels, tensors, prepare, {"x": x.shape}, x.device, needed)


def without_biases(flat: Sequence[Any], count: int) -> list[Any]:
    """x, W…, D…, U…, σ's: what backward reads."""
    return [*flat[: count + 1], *flat[2 * count + 1 : 3 * count + 1], *flat[4 * count + 1 :]]


def names_of(kernels: LayerKernels) -> Operands[str]:
    """What the kernels of a layer call its operands."""
    return _names(kernels.layer, kernels.act)


@functools.lru_cache(maxsize=512)
def _names(layer: Layer, act: tuple[str, ...]) -> Operands[str]:
    def of_site(site: int) -> SiteOperands[str]:
        name = functools.partial(layer.name, site=site)
        matrices = name("weight"), name("bias"), name("down"), name("down_bias"), name("up")
        return SiteOperands(*matrices, tuple(map(name, act)))

    return Operands("x", tuple(map(of_site, range(layer.sites))))


# --- layouts ---------------------------------------------------------------------------------------------------------


def _read(layer: Layer) -> tuple[set[str], set[str]]:
    """The names of the operands that kernels read as rows, and of those that they read by any strides."""
    wide = {"x", *(layer.name("dy", site) for site in range(layer.sites)), *(("h",) if layer.sites == 1 else ())}
    return wide, {layer.name("weight", site) for site in range(layer.sites)}


def laid_out(
    wide: Collection[str], strided: Collection[str], names: Sequence[str], tensors: Sequence[Any]
) -> tuple[dict[str, Tensor], dict[str, Prepare]]:
    """Operands laid out as kernels read them, and by which step each is, where one is needed."""
    found: dict[str, Tensor] = {}
    steps: dict[str, Prepare] = {}
    for name, tensor in zip(names, tensors, strict=True):
        step = _step(tensor) if name in wide else None
        if name not in wide and name not in strided and not tensor.is_contiguous():
            step = Tensor.contiguous
        found[name] = tensor if step is None else step(tensor)
        if step is not None:
            steps[name] = step
    return found, steps


def _step(tensor: Tensor) -> Prepare | None:
    """How [.., n] becomes rows that a kernel reads: any stride between them, none within."""
    if tensor.dim() == 2:
        return None if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else Tensor.contiguous
    return as_rows if tensor.is_contiguous() else _as_dense_rows


def as_rows(tensor: Tensor) -> Tensor:
    """A contiguous [.., n] as [rows, n]."""
    return tensor.view(-1, tensor.shape[-1])


def _as_dense_rows(tensor: Tensor) -> Tensor:
    rows = tensor.reshape(-1, tensor.shape[-1])
    return rows if rows.stride(-1) == 1 or rows.shape[-1] == 1 else rows.contiguous()


def _shadow(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


@functools.cache
def _where(device: torch.device) -> str:
    """What a measured choice depends on besides the layer and its rows."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    triton = metadata.version("triton") if have_triton() else "none"
    return f"{name}, torch {torch.__version__}, triton {triton}, generator {GENERATOR}"
