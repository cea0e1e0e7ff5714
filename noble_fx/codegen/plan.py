"""What a kernel is generated for: the layer, the tiles, and how cosines and products are computed.

A `Plan` holds everything that shapes the generated text, so the same plan gives the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from noble_fx.errors import KernelError, Refusal

GENERATOR = "4"  # raise it when the text of a kernel changes: older files in a cache are then left alone
MAX_RANK = 256
FUSED_RANK = 128  # up to here one tile holds the bottleneck, and one kernel all of σ's backward where that fits
NARROW_RANK = 64  # up to here it fits everywhere
BACKENDS = ("cuda", "hip", "interpreter")
SHARED_BYTES = {
    "sm_80": 166_912,
    "sm_86": 101_376,
    "sm_89": 101_376,
    "sm_90": 232_448,
    "sm_100": 232_448,
    "sm_120": 101_376,
    "gfx942": 65_536,
    "gfx950": 163_840,
}
TMA_TARGETS = ("sm_90", "sm_100", "sm_120")
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
    from the vendor's GEMM, because one kernel would spill; `split_forward`: h and the products with them do.
    `one_pass`: a program of `bottleneck_forward` holds all sites and reads x once; else it has one site of them.
    `tma`: there are products by tensor descriptors, too.
    """

    layer: Layer
    backend: str
    precision: str
    bottleneck_forward: Tile
    linear_up_forward: Tile
    bottleneck_backward: Tile
    linear_backward_input: Tile
    branch_weight_backward: Tile
    one_pass: bool
    split_forward: bool
    split_backward: bool
    tma: bool = False

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


def make_plan(
    layer: Layer,
    backend: str = "cuda",
    tf32: bool = False,
    shared: int = SHARED_BYTES["sm_80"],
    tma: bool = False,
    gated: bool = False,
) -> Plan:
    """The plan for a layer on a GPU with `shared` bytes of shared memory a block; raises `KernelError` with the reason.

    `tma`: the GPU copies by tensor descriptors (compute capability 9 and later). `gated`: σ holds values wider than the
    bottleneck.

    Tiles were chosen by the compiler's own report (registers, local memory, instructions; no GPU needed).
    """
    if refusal := why_not(layer):
        raise KernelError(refusal.reason)
    if backend not in BACKENDS:
        raise KernelError(f"backend={backend!r} is unknown; use one of {', '.join(BACKENDS)}")
    bottleneck_forward, bottleneck_backward = _bottleneck(layer, backend, shared, gated)
    main = _main(layer, backend, shared)
    widest, inputs = power_of_two(max(layer.out_features)), power_of_two(layer.in_features)
    one_pass = layer.sites == 1 or layer.sites * layer.rank <= (64 if layer.dtype == torch.float32 else 192)
    narrow = power_of_two(layer.rank) * (layer.sites if one_pass else 1)
    size, fused = layer.dtype.itemsize, fused_rank(layer.dtype, backend, shared)
    return Plan(
        layer=layer,
        backend=backend,
        precision="tf32" if tf32 else "ieee",
        bottleneck_forward=_staged(_fitted(bottleneck_forward, inputs), narrow, size, shared),
        linear_up_forward=_fitted(main, inputs, widest),
        bottleneck_backward=_staged(_fitted(bottleneck_backward, widest), power_of_two(layer.rank), size, shared),
        linear_backward_input=_fitted(main, widest, inputs),
        branch_weight_backward=_weights(layer, backend, shared),
        one_pass=one_pass,
        split_forward=layer.dtype == torch.float32 and layer.rank > fused,
        split_backward=layer.rank > fused,
        tma=tma and _described(layer),
    )


def _described(layer: Layer) -> bool:
    """Whether rows of every tensor are multiples of 16 bytes, of 16-bit numbers: full float32 gains nothing by it."""
    sizes = (layer.in_features, layer.rank, *layer.out_features)
    return layer.dtype.itemsize == 2 and all(size % 8 == 0 for size in sizes)


def power_of_two(size: int) -> int:
    """The smallest power of two that holds `size`, at least 16, the least side of a product's tile."""
    return max(16, 1 << (size - 1).bit_length())


def widest_tile(rank: int) -> int:
    """Channels in one tile at most; a wider bottleneck is held in several."""
    return 128 if rank <= FUSED_RANK else 64


def _bottleneck(layer: Layer, backend: str, shared: int, gated: bool) -> tuple[Tile, Tile]:
    """Fewer rows at once where the values of σ would not fit the registers beside each other."""
    if backend == "interpreter":  # small, so that small tests cross the borders of tiles
        return Tile(32, 0, 32, 4, 1), Tile(32, 0, 32, 4, 1)
    rank, full, amd = layer.rank, layer.dtype == torch.float32, backend == "hip"
    depth, room = (32, False) if full else (64, _roomy(backend, shared))
    rows = 32 if (rank > NARROW_RANK and not room) or (rank > 32 and full) else 64
    if rank > FUSED_RANK and not amd and (gated or not room):
        rows = 16
    # A warp of AMD's has 64 lanes: four of them have the registers that eight of NVIDIA's have.
    few = rank * layer.sites <= (32 if full else 64) or (rank > NARROW_RANK and amd)
    forward = Tile(rows, 0, depth, 4 if few else 8, 3)
    rows = 64 if rank <= 32 or (rank <= NARROW_RANK and room) else 32
    warps = 4 if rank <= 32 or (rank <= NARROW_RANK and amd) else 8
    if full:  # no tensor cores hold its products; what is split has none
        rows, warps = (16 if 32 < rank <= NARROW_RANK else 32), 8
    return forward, Tile(rows, 0, depth, warps, 3)


def fused_rank(dtype: torch.dtype, backend: str, shared: int) -> int:
    """The widest bottleneck that one kernel holds with all of σ's backward.

    Where the tensor cores read both operands from shared memory, as on sm_90 and sm_100, the registers have room for
    more. Full float32 products have no tensor cores, and their operands are in registers everywhere.
    """
    if backend == "interpreter":
        return FUSED_RANK
    return FUSED_RANK if dtype != torch.float32 and _roomy(backend, shared) else NARROW_RANK


def _roomy(backend: str, shared: int) -> bool:
    """Whether the operands of a product are in shared memory; the GPUs that can do that have the most of it."""
    return backend == "cuda" and shared >= 200_000


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
    if layer.rank > FUSED_RANK and layer.dtype == torch.float32 and backend == "cuda" and shared < 150_000:
        columns = 32  # with one stage, as fits sm_120, the operands of the next step are in registers too
    tile = Tile(columns, columns, 32 if layer.dtype == torch.float32 else 64, 8, 3)
    return replace(_staged(tile, power_of_two(layer.rank), layer.dtype.itemsize, shared), rows=0)


def _fitted(tile: Tile, depth: int, columns: int = 0) -> Tile:
    """No larger than what there is."""
    return replace(tile, columns=min(tile.columns, columns), depth=min(tile.depth, depth))


def _staged(tile: Tile, columns: int, itemsize: int, shared: int) -> Tile:
    """As many pipeline stages as fit: each holds a step of the left operand and one of every right operand."""
    step = (tile.rows + columns) * tile.depth * itemsize
    return replace(tile, stages=max(1, min(tile.stages, shared // step - 1)))
