"""What each way of a layer costs on paper: launches, FLOPs, bytes and, from a GPU's rates, microseconds.

    way           forward                                          dx of backward
    vendor        bottleneck, x Wᵀ + b, y += t Uᵀ                  bottleneck, dy W, dx += dh D
    kernel        bottleneck, one accumulation                     bottleneck, one accumulation
    descriptors   the same by tensor descriptors                   the same by tensor descriptors
    branch first  h and y0 = t Uᵀ + b in one, y0 += x Wᵀ           dh and dx0 = dh D in one, dx0 += dy W

Each launch takes its FLOPs at the rate of its product or its bytes at the bandwidth, whichever is longer, and a gap.
What all ways share (dW, dU, dD, sums over the rows) is left out. Caches are not modelled.
The paper says where to look; what runs is what was measured (`runtime/autotune.py`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from noble_fx.codegen.plan import FUSED_RANK

_COPIED = 0.9  # an assumption for the B200: the share of its nominal bandwidth that a copy reaches, as on the H100
GAP = 2e-6  # seconds between two launches of one stream: an assumption
WIDTH = 2  # bytes of a number: bfloat16 and float16


@dataclass(frozen=True)
class Gpu:
    """Bytes a second of a copy, FLOPs a second of the vendor's GEMM in 16 bits; `assumed`: what is no measurement."""

    name: str
    bandwidth: float
    gemm: float
    assumed: str = ""


H100 = Gpu("H100", 3.0e12, 790e12)
H200 = Gpu("H200", 4.3e12, 790e12, "the GEMM is the H100's: the same chip")
B200 = Gpu("B200", _COPIED * 7.7e12, 2.2 * 790e12, "2.2 times the H100's GEMM; 0.9 of a nominal bandwidth of 7.7 TB/s")
GPUS = (H100, H200, B200)

# What a kernel's product reaches of the vendor's rate: assumptions, nothing here was timed.
RATES = {"vendor": 1.0, "pointers": 0.9, "descriptors": 0.95}


@dataclass(frozen=True)
class Shape:
    """A layer: x [rows, inputs] -> [rows, outputs], a bottleneck of `rank` channels."""

    rows: int
    inputs: int
    outputs: int
    rank: int


@dataclass(frozen=True)
class Launch:
    """One launch: its name, what it computes and moves, and whose product it is."""

    name: str
    flops: int
    bytes: int
    rate: str = "vendor"

    def seconds(self, gpu: Gpu) -> float:
        """How long it takes where nothing else is in its way."""
        return max(self.flops / (gpu.gemm * RATES[self.rate]), self.bytes / gpu.bandwidth) + GAP


Way = tuple[Launch, ...]


def forward(shape: Shape) -> dict[str, Way]:
    """Every way of y = x Wᵀ + b + σ(x Dᵀ) Uᵀ."""
    s, k, n, r = shape.rows, shape.inputs, shape.outputs, shape.rank
    h = 4 * s * r  # kept for backward in float32
    narrow = Launch("bottleneck_forward", 2 * s * k * r, WIDTH * (s * k + k * r + s * r) + h, "pointers")
    first = Launch("branch_first_forward", 2 * s * r * (k + n), WIDTH * (s * k + s * n + r * (k + n)) + h, "pointers")
    return _ways(narrow, first, _wide(s, k, n, r), "linear_up_forward")


def backward_input(shape: Shape) -> dict[str, Way]:
    """Every way of dh and dx = dy W + dh D, where one kernel holds σ's backward; none for a rank that is cut."""
    if shape.rank > FUSED_RANK:
        return {}  # the launches depend on σ
    s, k, n, r = shape.rows, shape.inputs, shape.outputs, shape.rank
    kept = 4 * s * r + 2 * WIDTH * s * r  # h is read, t and dh are written
    narrow = Launch("bottleneck_backward", 2 * s * n * r, WIDTH * (s * n + n * r) + kept, "pointers")
    first = Launch(
        "branch_first_backward", 2 * s * r * (k + n), WIDTH * (s * n + s * k + r * (k + n)) + kept, "pointers"
    )
    return _ways(narrow, first, _wide(s, n, k, r), "linear_backward_input")


@dataclass(frozen=True)
class _Wide:
    """[rows, depth] · [depth, columns] and the branch's product beside it, in FLOPs and bytes."""

    flops: int
    branch_flops: int
    operands: int
    branch_operands: int
    result: int


def _wide(rows: int, depth: int, columns: int, rank: int) -> _Wide:
    return _Wide(
        flops=2 * rows * depth * columns,
        branch_flops=2 * rows * rank * columns,
        operands=WIDTH * (rows * depth + depth * columns),
        branch_operands=WIDTH * (rows * rank + rank * columns),
        result=WIDTH * rows * columns,
    )


def _ways(narrow: Launch, first: Launch, wide: _Wide, name: str) -> dict[str, Way]:
    def together(suffix: str, rate: str) -> Launch:
        moved = wide.operands + wide.branch_operands + wide.result
        return Launch(f"{name}{suffix}", wide.flops + wide.branch_flops, moved, rate)

    return {
        "vendor": (
            narrow,
            Launch("GEMM", wide.flops, wide.operands + wide.result),
            Launch("GEMM that adds", wide.branch_flops, wide.branch_operands + 2 * wide.result),
        ),
        "kernel": (narrow, together("", "pointers")),
        "descriptors": (narrow, together("_tma", "descriptors")),
        "branch first": (first, Launch("GEMM that adds", wide.flops, wide.operands + 2 * wide.result)),
    }


def seconds(way: Iterable[Launch], gpu: Gpu) -> float:
    """The launches of a way, one after the other."""
    return sum(launch.seconds(gpu) for launch in way)


def plain_seconds(shape: Shape, gpu: Gpu) -> float:
    """The layer without its branch, forward: the vendor's GEMM alone."""
    wide = _wide(shape.rows, shape.inputs, shape.outputs, shape.rank)
    return Launch("GEMM", wide.flops, wide.operands + wide.result).seconds(gpu)


SHAPES = tuple(Shape(16_384, size, size, rank) for size in (1024, 2048, 4096) for rank in (16, 64, 256))


def cost_table(gpus: Iterable[Gpu] = (H100, B200), shapes: Iterable[Shape] = SHAPES) -> list[list[str]]:
    """Microseconds of every way, forward and dx, the shortest marked by a star; the first row is the head."""
    names = list(forward(Shape(1, 1, 1, 1)))
    rows = [["GPU", "K = N", "r", "pass", *names]]
    for gpu in gpus:
        for shape in shapes:
            for direction, ways in (("forward", forward(shape)), ("dx", backward_input(shape))):
                if not ways:
                    continue
                times = {name: seconds(way, gpu) for name, way in ways.items()}
                least = min(times.values())
                cells = [f"{1e6 * time:.0f}{' *' if time == least else ''}" for time in times.values()]
                rows.append([gpu.name, str(shape.inputs), str(shape.rank), direction, *cells])
    return rows
