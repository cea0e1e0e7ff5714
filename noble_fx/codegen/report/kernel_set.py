"""The generated kernels of one layer, to read and to judge: their text, and what the compiler makes of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from noble_fx.branches.noble import NobleBranch
from noble_fx.codegen.generate import generate
from noble_fx.codegen.header import LICENSE
from noble_fx.codegen.kernel import Kernel
from noble_fx.codegen.plan import DTYPES, SHARED_BYTES, TMA_TARGETS, Layer, Plan, make_plan
from noble_fx.codegen.report.resources import Resources, backend_of, compile_kernels
from noble_fx.codegen.sigma.in_kernel import is_gated
from noble_fx.config import NobleConfig, NoblePreset
from noble_fx.errors import ConfigError, KernelError, Refusal, nearest, printable
from noble_fx.files import as_path, staged
from noble_fx.tables import as_text, plain, table

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class KernelSet:
    """Every kernel of one layer; `str()` is a table, `sources` their text."""

    plan: Plan
    kernels: dict[str, Kernel]
    whole: bool = True

    @property
    def sources(self) -> dict[str, str]:
        """The text of each kernel's file, by the kernel's name."""
        return {name: kernel.source for name, kernel in self.kernels.items()}

    def compile(self, target: str = "sm_90") -> dict[str, Resources]:
        """What the compiler makes of each kernel for "sm_80", "sm_90", "gfx942" or another target; no GPU needed.

        `sources` is what sm_90 gets; for another target the tiles are chosen anew. Raises `KernelError`.
        """
        there = self.on(target)
        return compile_kernels(there.plan, there.kernels.values(), target)

    def on(self, target: str) -> KernelSet:
        """The kernels that a target gets; raises `KernelError` for an unknown one, or where it has other kernels."""
        plan = _plan(self.plan.layer, target)
        kernels = generate(plan)
        if self.whole:
            return KernelSet(plan, kernels)
        if missing := self.kernels.keys() - kernels:
            raise KernelError(f"{target} does not run {', '.join(missing)}, but {', '.join(kernels)}")
        return KernelSet(plan, {name: kernels[name] for name in self.kernels}, whole=False)

    def only(self, name: str) -> KernelSet:
        """The set with this one kernel; raises `ConfigError` that names the others."""
        if name not in self.kernels:
            names = ", ".join(self.kernels)
            raise ConfigError(f"no kernel {name!r}{nearest(name, self.kernels)}; this layer has {names}")
        return KernelSet(self.plan, {name: self.kernels[name]}, whole=False)

    def write(self, folder: str | Path, overwrite: bool = False) -> None:
        """Write every kernel to `folder` as `NAME.py`; raises `KernelError` where the folder exists or cannot be.

        `overwrite` replaces a folder of generated kernels that holds nothing else.
        """
        target = as_path(folder, KernelError)
        with staged(target, KernelError, overwrite, _stranger) as work:
            inside = work / target.name
            inside.mkdir()
            for name, source in self.sources.items():
                (inside / f"{name}.py").write_text(source, encoding="utf-8")

    def __str__(self) -> str:
        return as_text(self)

    def __rich__(self) -> Table:
        layer = self.plan.layer
        shape = f"{layer.in_features} → {', '.join(map(str, layer.out_features))}"
        shown = _table(
            f"{layer.act.rpartition('-')[0]}, {shape}, rank {layer.rank}, {DTYPES[layer.dtype]}",
            ("lines", "rows", "warps", "stages", "FLOPs/row", "bytes/row", "bytes once"),
        )
        for kernel in self.kernels.values():
            lines = len(kernel.source.splitlines())
            moved = map(_short, (kernel.flops_per_row, kernel.bytes_per_row, kernel.bytes_once))
            shown.add_row(kernel.name, *map(str, (lines, kernel.row_tile, kernel.warps, kernel.stages)), *moved)
        return shown


def _stranger(folder: Path) -> str:
    """What is in a folder and no generated kernel, by name; "" where nothing is."""
    for entry in sorted(folder.iterdir()):
        if entry.suffix != ".py" or not entry.is_file() or LICENSE.encode() not in entry.read_bytes():
            return f"{printable(entry.name)}, which is no generated kernel,"
    return ""


def kernels(
    act: Any = "cosnet",
    *,
    in_features: int,
    out_features: int | tuple[int, ...],
    rank: int = 64,
    dtype: torch.dtype = torch.bfloat16,
    bias: bool = True,
    preset: str | NoblePreset = "paper",
    act_dtype: torch.dtype | None = None,
) -> KernelSet:
    """The kernels that run x [.., in_features] -> [.., out_features] with its branch on a GPU, forward and backward.

    Several `out_features` are several layers that read the same x; `act_dtype` is how σ's parameters are stored
    (default: as the rest; float32 under autocast). Raises `ConfigError` for an activation or a size that cannot be, and
    `KernelError` with the reason where there is no kernel.
    """
    outputs = out_features if isinstance(out_features, tuple) else (out_features,)
    for name, size in (("in_features", in_features), *(("out_features", size) for size in outputs), ("rank", rank)):
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ConfigError(f"{name}={size!r} must be an integer ≥ 1")
    for name, value in (("dtype", dtype), ("act_dtype", act_dtype)):
        if value is not None and not isinstance(value, torch.dtype):
            raise ConfigError(f"{name}={value!r} is no torch.dtype; use torch.bfloat16, torch.float16 or torch.float32")
    branch = NobleBranch.on_meta(in_features, outputs[0], rank, NobleConfig(rank=rank, act=act, preset=preset))
    form = branch.fused_form()
    if isinstance(form, Refusal):
        raise KernelError(form.reason)
    layer = Layer(
        in_features=in_features,
        out_features=outputs,
        rank=rank,
        act=form.key,
        dtype=dtype,
        act_dtype=act_dtype or dtype,
        bias=bias,
        down_bias=form.down_bias is not None,
    )
    return layer_kernel_set(layer)


def layer_kernel_set(layer: Layer) -> KernelSet:
    """The kernels of a layer that is described already, as sm_90 gets them; raises `KernelError`."""
    plan = _plan(layer, "sm_90")
    return KernelSet(plan, generate(plan))


def _plan(layer: Layer, target: str) -> Plan:
    descriptors = target in TMA_TARGETS
    return make_plan(layer, backend_of(target), False, SHARED_BYTES[target], descriptors, is_gated(layer))


def resource_table(resources: dict[str, Resources], target: str) -> Table:
    """What the compiler made of each kernel, as a table."""
    shown = _table(target, ("registers", "local B", "shared B", "instructions", "tensor ops", "cosines"))
    for name, kernel in resources.items():
        matrix = sum(kernel.count(prefix) for prefix in ("HGMMA", "HMMA", "UTCHMMA", "v_mfma"))
        cosines = sum(kernel.count(prefix) for prefix in ("MUFU.COS", "v_cos"))
        cells = (kernel.registers, kernel.local_bytes, kernel.shared_bytes, kernel.instructions, matrix, cosines)
        shown.add_row(name, *(f"{cell:,}" for cell in cells))
    return shown


def _table(title: str, columns: tuple[str, ...]) -> Table:
    shown = table(title=plain(title), title_justify="left", header_style="bold")
    shown.add_column("kernel", no_wrap=True)
    for name in columns:
        shown.add_column(name, justify="right", no_wrap=True)
    return shown


def _short(count: float) -> str:
    """34078720 → 34.1M."""
    for unit in ("", "k", "M", "G"):
        if count < 1000:
            return f"{count:.3g}{unit}"
        count /= 1000
    return f"{count:.4g}T"


def dtype_of(name: str) -> torch.dtype:
    """The dtype of "bf16", "fp16", "fp32" or torch's own name; raises `ConfigError`."""
    by_name = {short: dtype for dtype, short in DTYPES.items()}
    by_name |= {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES}
    if name not in by_name:
        raise ConfigError(f"dtype {name!r} has no kernels{nearest(name, by_name)}; use one of {', '.join(by_name)}")
    return by_name[name]
