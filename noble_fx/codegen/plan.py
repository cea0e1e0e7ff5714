"""What a kernel is generated for: the layer, the tiles, and how cosines and products are computed.

A `Plan` holds everything that shapes the generated text, so the same plan gives the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from noble_fx.errors import KernelError

GENERATOR = "1"  # raise it when the text of a kernel changes: older files in a cache are then left alone
MAX_RANK = 256
MAX_TILE = 128  # channels in one tile; a wider bottleneck is held in several
BACKENDS = ("cuda", "hip", "interpreter")
DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True)
class Layer:
    """One linear map with its branch, or several that read the same x.

    `out_features` has one entry a site; `act` is σ's key; `act_dtype` is how σ's parameters are stored.
    """

    in_features: int
    out_features: tuple[int, ...]
    rank: int
    act: str
    dtype: torch.dtype
    act_dtype: torch.dtype
    bias: bool = True
    down_bias: bool = False

    @property
    def sites(self) -> int:
        """How many linear maps read this x."""
        return len(self.out_features)

    def name(self, tensor: str, site: int) -> str:
        """The name of one site's tensor: its own where there is one site, else with the site's number."""
        return tensor if self.sites == 1 else f"{tensor}_{site}"


@dataclass(frozen=True)
class Tile:
    """Sizes of one kernel's tile: output rows × columns, the step of its main loop; warps, pipeline stages."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Plan:
    """A layer and how its kernels are laid out for one backend.

    `precision`: of float32 products, "ieee" or "tf32". `split_backward`: dt and the gradients of σ's matrices come
    from the vendor's GEMM, because one kernel would spill.
    """

    layer: Layer
    backend: str
    precision: str
    bottleneck_forward: Tile
    linear_up_forward: Tile
    bottleneck_backward: Tile
    linear_backward_input: Tile
    branch_weight_backward: Tile
    split_backward: bool

    @property
    def exact(self) -> bool:
        """True where σ is computed as float32 asks for: accurate functions, full products."""
        return self.layer.dtype == torch.float32

    @property
    def fast_cosine(self) -> bool:
        """True where cosines are the hardware's, of an argument reduced by 2π."""
        return self.backend == "cuda" and not self.exact


def why_not(layer: Layer) -> str:
    """The reason why no kernel is generated for this layer's dtypes and rank, or an empty string."""
    for dtype in (layer.dtype, layer.act_dtype):
        if dtype not in DTYPES:
            return f"no kernels for {dtype}; they take float32, bfloat16 and float16"
    if not 1 <= layer.rank <= MAX_RANK:
        return f"rank {layer.rank} is over the kernels' limit of {MAX_RANK}"
    return ""


def make_plan(layer: Layer, backend: str = "cuda", tf32: bool = False) -> Plan:
    """The plan for a layer; raises `KernelError` with the reason where there is none.

    Tiles were chosen by the compiler's own report for sm_90 (registers, local memory, instructions; no GPU needed).
    """
    if reason := why_not(layer):
        raise KernelError(reason)
    if backend not in BACKENDS:
        raise KernelError(f"backend={backend!r} is unknown; use one of {', '.join(BACKENDS)}")
    wide = layer.dtype == torch.float32
    rank = min(power_of_two(layer.rank), MAX_TILE)
    widest = power_of_two(max(layer.out_features))
    inputs = power_of_two(layer.in_features)
    columns = 128 if wide else 256
    if backend == "interpreter":  # small, so that small tests cross the borders of tiles
        main = bottleneck = Tile(rows=32, columns=64, depth=32, warps=4, stages=1)
        weights = Tile(rows=32, columns=64, depth=64, warps=4, stages=1)
    else:
        main = Tile(rows=128, columns=columns, depth=32 if wide else 64, warps=8, stages=3)
        bottleneck = Tile(rows=64, columns=rank, depth=32 if wide else 64, warps=4 if rank <= 64 else 8, stages=3)
        weights = Tile(rows=128, columns=rank, depth=32 if wide else 64, warps=8, stages=3)
    return Plan(
        layer=layer,
        backend=backend,
        precision="tf32" if tf32 else "ieee",
        bottleneck_forward=_fitted(bottleneck, rank, inputs),
        linear_up_forward=_fitted(main, widest, inputs),
        bottleneck_backward=_fitted(bottleneck, rank, widest),
        linear_backward_input=_fitted(main, inputs, widest),
        branch_weight_backward=weights,
        split_backward=layer.rank > MAX_TILE,
    )


def power_of_two(size: int) -> int:
    """The smallest power of two that holds `size`, at least 16, the least side of a product's tile."""
    return max(16, 1 << (size - 1).bit_length())


def _fitted(tile: Tile, columns: int, depth: int) -> Tile:
    return Tile(tile.rows, min(tile.columns, columns), min(tile.depth, depth), tile.warps, tile.stages)
