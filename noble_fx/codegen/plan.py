"""What a kernel is generated for: the layer, the tiles, and how cosines and products are computed.

A `Plan` holds everything that shapes the generated text, so the same plan gives the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from noble_fx.errors import KernelError, Refusal

GENERATOR = "3"  # raise it when the text of a kernel changes: older files in a cache are then left alone
MAX_RANK = 256
FUSED_RANK = 128  # up to here one kernel holds all of σ's backward; a wider bottleneck would spill
BACKENDS = ("cuda", "hip", "interpreter")
SHARED_BYTES = {"sm_80": 166_912, "sm_86": 101_376, "sm_89": 101_376, "sm_90": 232_448, "gfx942": 65_536}
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
    frozen: tuple[int, ...] = ()  # numbers of those of σ's parameters whose gradient nobody wants: none is computed

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
        """True where cosines are the hardware's, of an argument reduced by 2π; elsewhere they are polynomials."""
        return self.backend == "cuda" and not self.exact


def why_not(layer: Layer) -> Refusal | None:
    """Why no kernel is generated for this layer's dtypes and rank; None where kernels are."""
    for dtype in (layer.dtype, layer.act_dtype):
        if dtype not in DTYPES:
            return Refusal(f"no kernels for {dtype}; they take float32, bfloat16 and float16")
    if not 1 <= layer.rank <= MAX_RANK:
        return Refusal(f"rank {layer.rank} is over the kernels' limit of {MAX_RANK}")
    return None


def make_plan(layer: Layer, backend: str = "cuda", tf32: bool = False, shared: int = SHARED_BYTES["sm_80"]) -> Plan:
    """The plan for a layer on a GPU with `shared` bytes of shared memory a block; raises `KernelError` with the reason.

    Tiles were chosen by the compiler's own report for sm_90 (registers, local memory, instructions; no GPU needed).
    """
    if refusal := why_not(layer):
        raise KernelError(refusal.reason)
    if backend not in BACKENDS:
        raise KernelError(f"backend={backend!r} is unknown; use one of {', '.join(BACKENDS)}")
    bottleneck_forward, bottleneck_backward = _bottleneck(layer, backend)
    main = _main(layer, backend, shared)
    widest, inputs = power_of_two(max(layer.out_features)), power_of_two(layer.in_features)
    narrow = layer.sites * power_of_two(layer.rank)
    size = layer.dtype.itemsize
    return Plan(
        layer=layer,
        backend=backend,
        precision="tf32" if tf32 else "ieee",
        bottleneck_forward=_staged(_fitted(bottleneck_forward, inputs), narrow, size, shared),
        linear_up_forward=_fitted(main, inputs, widest),
        bottleneck_backward=_staged(_fitted(bottleneck_backward, widest), power_of_two(layer.rank), size, shared),
        linear_backward_input=_fitted(main, widest, inputs),
        branch_weight_backward=_weights(layer, backend, shared),
        split_backward=layer.rank > FUSED_RANK,
    )


def power_of_two(size: int) -> int:
    """The smallest power of two that holds `size`, at least 16, the least side of a product's tile."""
    return max(16, 1 << (size - 1).bit_length())


def widest_tile(rank: int) -> int:
    """Channels in one tile at most; a wider bottleneck is held in several."""
    return 128 if rank <= FUSED_RANK else 64


def _bottleneck(layer: Layer, backend: str) -> tuple[Tile, Tile]:
    full = layer.dtype == torch.float32
    depth = 32 if full else 64
    if backend == "interpreter":  # small, so that small tests cross the borders of tiles
        return Tile(32, 0, 32, 4, 1), Tile(32, 0, 32, 4, 1)
    # Full float32 products have no tensor cores to hold them: fewer rows at once.
    rows = 32 if full and layer.rank > 64 else 64
    forward = Tile(rows, 0, depth, 4 if layer.rank * layer.sites <= (32 if full else 64) else 8, 3)
    rows = (64 if layer.rank <= 64 else 32) // (2 if full else 1)
    if layer.rank > FUSED_RANK:
        rows = 32
    return forward, Tile(rows, 0, depth, 4 if layer.rank <= 32 and not full else 8, 3)


def _main(layer: Layer, backend: str, shared: int) -> Tile:
    if backend == "interpreter":
        return Tile(32, 64, 32, 4, 1)
    if layer.dtype == torch.float32:
        return Tile(128, 128, 32, 8, 3 if shared >= 100_000 else 2)
    if shared >= 150_000:
        return Tile(128, 256, 64, 8, 3)
    return Tile(128, 128, 64, 8, 3 if shared >= 100_000 else 2)


def _weights(layer: Layer, backend: str, shared: int) -> Tile:
    if backend == "interpreter":
        return Tile(0, 64, 32, 4, 1)
    columns = 128 if layer.rank <= FUSED_RANK else 64
    tile = Tile(columns, columns, 32 if layer.dtype == torch.float32 else 64, 8, 3)
    return replace(_staged(tile, power_of_two(layer.rank), layer.dtype.itemsize, shared), rows=0)


def _fitted(tile: Tile, depth: int, columns: int = 0) -> Tile:
    """No larger than what there is."""
    return replace(tile, columns=min(tile.columns, columns), depth=min(tile.depth, depth))


def _staged(tile: Tile, columns: int, itemsize: int, shared: int) -> Tile:
    """As many pipeline stages as fit: each holds a step of the left operand and one of every right operand."""
    step = (tile.rows + columns) * tile.depth * itemsize
    return replace(tile, stages=max(1, min(tile.stages, shared // step - 1)))
