"""The generated kernels without a GPU: FLOPs and bytes against the floor, and what the compiler makes of each kernel.

    python -m benchmarks kernels

These are counts, not times. The floor of forward is what the layer's formula asks for: its FLOPs, x, y and every
parameter moved once. Ours moves x once more (the bottleneck's own pass) and h and t, r wide.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import asdict
from importlib import metadata

import torch
from rich.console import Console
from rich.table import Table

import noble_fx
from noble_fx.codegen.plan import SHARED_BYTES
from noble_fx.codegen.report.kernel_set import KernelSet, resource_table
from noble_fx.codegen.report.resources import TARGETS, Resources

SIZES = (1024, 2048, 4096)
RANKS = (16, 32, 64, 128, 256)
ROWS = 16_384
SPILLED = 256  # bytes of local memory a thread, of any kernel on any target
FORWARD = ("bottleneck_forward", "linear_up_forward")
_TENSOR_CORE = {
    "sm_80": "HMMA",
    "sm_90": "HGMMA",
    "sm_100": "UTCHMMA",
    "sm_120": "HMMA",
    "gfx942": "v_mfma",
    "gfx950": "v_mfma",
}


def traffic(kernel_set: KernelSet, rows: int = ROWS) -> dict[str, dict[str, int]]:
    """FLOPs and bytes of each kernel at `rows` rows, each tensor counted once."""
    return {
        name: {
            "flops": rows * kernel.flops_per_row,
            "bytes": rows * kernel.bytes_per_row + kernel.bytes_once,
        }
        for name, kernel in kernel_set.kernels.items()
    }


def forward_floor(kernel_set: KernelSet, rows: int = ROWS) -> dict[str, float]:
    """Forward of the layer: ours, the floor, and the plain linear, in FLOPs and bytes, and ours over the floor."""
    layer = kernel_set.plan.layer
    inputs, outputs, rank, size = layer.in_features, sum(layer.out_features), layer.rank, layer.dtype.itemsize
    moved = traffic(kernel_set, rows)
    plain_flops, plain_bytes = 2 * rows * inputs * outputs, size * (rows * (inputs + outputs) + inputs * outputs)
    floor_flops = plain_flops + 2 * rows * rank * (inputs + outputs)
    floor_bytes = plain_bytes + size * rank * (inputs + outputs)
    flops, moved_bytes = (sum(moved[name][what] for name in FORWARD) for what in ("flops", "bytes"))
    return {
        "plain_flops": plain_flops,
        "plain_bytes": plain_bytes,
        "floor_flops": floor_flops,
        "floor_bytes": floor_bytes,
        "flops": flops,
        "bytes": moved_bytes,
        "flops_over_floor": flops / floor_flops,
        "bytes_over_floor": moved_bytes / floor_bytes,
    }


def broken_promises(kernel_set: KernelSet, resources: Mapping[str, Resources], target: str) -> list[str]:
    """What the kernels of a layer must reach offline, and do not; an empty list where all is well.

    Shared memory must suffice and little may spill on every target; instructions and the cosine are promised for sm_90.
    """
    rank, core, broken = kernel_set.plan.layer.rank, _TENSOR_CORE[target], []
    kernels = kernel_set.on(target).kernels
    for name, kernel in resources.items():
        if kernel.shared_bytes > SHARED_BYTES[target]:
            broken.append(f"{name}: {kernel.shared_bytes} bytes of shared memory, {target} has {SHARED_BYTES[target]}")
        if kernels[name].flops_per_row and not kernel.count(core):
            broken.append(f"{name}: no {core}, so its products do not run on tensor cores")
        if kernel.local_bytes > SPILLED:
            broken.append(f"{name}: {kernel.local_bytes} bytes of local memory, {SPILLED} allowed on {target}")
        if target == "sm_90":
            broken += _promised(name, kernel, rank)
    if rank > 128 and "bottleneck_backward" in resources:
        broken.append(f"the backward of rank {rank} is not split")
    for name, there in kernels.items():
        stores = len(re.findall(r"tl\.store\(y\w*_ptr", there.source))
        if stores != (name in ("linear_up_forward", "branch_first_forward")):
            broken.append(f"{name}: y is stored in {stores} places")
    return broken


def _promised(name: str, kernel: Resources, rank: int) -> list[str]:
    allowed, broken = 256 if rank == 128 else 0, []
    if kernel.local_bytes > allowed:
        broken.append(f"{name}: {kernel.local_bytes} bytes of local memory, {allowed} allowed at rank {rank}")
    if name.startswith("bottleneck") and kernel.instructions >= 4000:
        broken.append(f"{name}: {kernel.instructions} instructions, fewer than 4000 are promised")
    if name.startswith("bottleneck") and not kernel.count("MUFU.COS"):
        broken.append(f"{name}: no MUFU.COS, so its cosines are not the hardware's")
    return broken


def _summary(resources: Mapping[str, Resources], target: str) -> dict[str, dict[str, int]]:
    """Each kernel's resources, with two sums in place of the whole list of instructions."""
    summary = {}
    for name, kernel in resources.items():
        summary[name] = {key: value for key, value in asdict(kernel).items() if key != "opcodes"}
        summary[name]["tensor_core_instructions"] = kernel.count(_TENSOR_CORE[target])
        summary[name]["cosines"] = kernel.count("MUFU.COS") + kernel.count("v_cos")
    return summary


def run() -> dict[str, object]:
    """CosNet in bfloat16, every size, rank and target; prints the tables and returns every figure."""
    console = Console()
    figures = []
    table = Table(title=f"forward against the floor, {ROWS:,} rows, bfloat16", title_justify="left", box=None)
    for column in ("K = N", "r", "FLOPs", "/ floor", "/ plain", "bytes", "/ floor", "/ plain"):
        table.add_column(column, justify="right")
    for size in SIZES:
        for rank in RANKS:
            kernel_set = noble_fx.kernels(in_features=size, out_features=size, rank=rank, dtype=torch.bfloat16)
            floor = forward_floor(kernel_set)
            table.add_row(
                f"{size}",
                f"{rank}",
                f"{floor['flops']:.3g}",
                f"{floor['flops_over_floor']:.3f}",
                f"{floor['flops'] / floor['plain_flops']:.3f}",
                f"{floor['bytes']:.3g}",
                f"{floor['bytes_over_floor']:.3f}",
                f"{floor['bytes'] / floor['plain_bytes']:.3f}",
            )
            compiled = {target: kernel_set.compile(target) for target in TARGETS}
            broken = {target: broken_promises(kernel_set, resources, target) for target, resources in compiled.items()}
            for target, resources in compiled.items():
                console.print(resource_table(resources, f"{target}, K = N = {size}, r = {rank}"))
                for line in broken[target]:
                    console.print(f"[red]{line}[/red]")
            figures.append(
                {
                    "size": size,
                    "rank": rank,
                    "forward": floor,
                    "kernels": traffic(kernel_set),
                    "resources": {target: _summary(resources, target) for target, resources in compiled.items()},
                    "broken": broken,
                }
            )
    console.print(table)
    versions = {name: metadata.version(name) for name in ("torch", "triton")} | {"python": sys.version.split()[0]}
    note = "counted by the generator and read from compiled machine code, without a GPU; nothing here was timed"
    return {"note": note, "versions": versions, "rows": ROWS, "act": "cosnet", "dtype": "bfloat16", "figures": figures}
