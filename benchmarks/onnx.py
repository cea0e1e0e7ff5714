"""What NOBLE costs in ONNX Runtime on the CPU: a plain export against this project's.

    python -m benchmarks onnx

plain     the model without branches, torch's own export
by hand   every block linear as the formula typed in (`cpu_linear.ByHand`), torch's own export
folded    noble_fx.export_onnx(join=False)
down      noble_fx.export_onnx(join="down"), folded, W and D' one matrix
up        noble_fx.export_onnx(), folded, W and U one matrix

All five are sessions of one process that take turns: with one thread each, timed in CPU seconds, and with a thread for
every core, timed by the clock. `arithmetic` is what the branches multiply more than the linears that carry them.
"""

from __future__ import annotations

import copy
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

import noble_fx
from benchmarks.cpu_linear import ByHand
from noble_fx.demo.byte_gpt import Attention, Block, ByteGPT
from noble_fx.interleaved import Timing, interleave, machine
from noble_fx.runtime import OnnxModel


class Bidirectional(Attention):
    """Attention in which every token sees all others."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            linear(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for linear in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class ViT(nn.Module):
    """ViT-S/16: pixels [B, 3, 224, 224] -> logits [B, 1000]; 197 tokens of width 384."""

    def __init__(self, width: int = 384, layers: int = 12, heads: int = 6, size: int = 224) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 16, stride=16)
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.position = nn.Parameter(torch.randn(1, (size // 16) ** 2 + 1, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        for block in self.blocks:
            block.attention = Bidirectional(width, heads)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 1000)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patches(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


@dataclass(frozen=True)
class Case:
    """One model of the benchmark: how to build it, the rank of its branches, and an input of a given batch."""

    name: str
    build: Callable[[], nn.Module]
    rank: int
    inputs: Callable[[int], Tensor]


CASES = [
    Case(
        "GPT 12 × 768, 128 tokens, r 64",
        lambda: ByteGPT(width=768, layers=12, heads=12, context=128),
        64,
        lambda batch: torch.randint(0, 256, (batch, 128), generator=torch.Generator().manual_seed(0)),
    ),
    Case(
        "ViT-S/16, 197 tokens, r 32",
        ViT,
        32,
        lambda batch: torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0)),
    ),
    Case(
        "GPT 6 × 1024, 128 tokens, r 64",
        lambda: ByteGPT(width=1024, layers=6, heads=16, context=128),
        64,
        lambda batch: torch.randint(0, 256, (batch, 128), generator=torch.Generator().manual_seed(0)),
    ),
]
BATCHES = (1, 8)
NAMES = ("plain", "by hand", "folded", "down", "up")


def export_forms(plain: nn.Module, x: Tensor, folder: Path, rank: int, select: str = "auto") -> dict[str, Path]:
    """The five files of one model; the four with branches hold the same numbers of parameters."""
    by_hand = _by_hand(copy.deepcopy(plain), rank, select)
    model = noble_fx.transform(plain, rank=rank, select=select, capture="modules", seed=0)
    paths = {name: folder / f"{name.replace(' ', '_')}.onnx" for name in NAMES}
    with noble_fx.disabled(model):
        _torch_export(model, x, paths["plain"])
    _torch_export(by_hand, x, paths["by hand"])
    joins: dict[str, str | bool] = {"folded": False, "down": "down", "up": "up"}
    for name, join in joins.items():
        print(noble_fx.export_onnx(model, (x,), paths[name], join=join, verify=name == "up"))
    return paths


def _torch_export(model: nn.Module, x: Tensor, path: Path) -> None:
    axes = dict.fromkeys((0, 1) if x.ndim == 2 else (0,), torch.export.Dim.AUTO)
    torch.onnx.export(model, (x,), path, dynamic_shapes=(axes,), dynamo=True, verbose=False, external_data=False)


def _by_hand(model: nn.Module, rank: int, select: str) -> nn.Module:
    """The same linears replaced by the formula as a module."""
    for site in noble_fx.sites(model, rank=rank, select=select):
        if site.selected:
            parent, _, name = site.fqn.rpartition(".")
            plain: Any = model.get_submodule(site.fqn)
            by_hand = ByHand(site.in_features, site.out_features, rank, bias=plain.bias is not None)
            setattr(model.get_submodule(parent), name, by_hand)
    return model.eval()


def arithmetic(case: Case) -> float:
    """Multiplications of the branches over those of the linears that carry them."""
    with torch.device("meta"):
        carrying = [site for site in noble_fx.sites(case.build(), rank=case.rank) if site.selected]
    base = sum(site.in_features * site.out_features for site in carrying)
    return sum(s.rank * (s.in_features + s.out_features + s.rank) for s in carrying) / base


def run(rounds: int = 24) -> dict[str, object]:
    """Every model, batch size and number of threads; prints a table and returns every figure."""
    table = Table(box=None, header_style="bold")
    for column in ("model", "batch", "threads", *NAMES, "up / by hand", "arithmetic"):
        table.add_column(column, justify="left" if column == "model" else "right")
    figures: list[dict[str, Any]] = []
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            torch.manual_seed(0)
            paths = export_forms(case.build().eval(), case.inputs(2), Path(folder), case.rank)
            sizes = {name: path.stat().st_size for name, path in paths.items()}
            for threads in dict.fromkeys((1, os.cpu_count() or 1)):
                sessions = {name: OnnxModel(path, device="cpu", threads=threads) for name, path in paths.items()}
                for batch in BATCHES:
                    timings = timed(sessions, case.inputs(batch), threads, max(rounds // batch, 12))
                    figures.append(_figure(case, batch, threads, timings, sizes))
                    table.add_row(*_row(figures[-1], timings))
                del sessions
    Console(width=150).print(table)
    return {"machine": {**machine(), "onnxruntime": version()}, "rounds": rounds, "figures": figures}


def timed(sessions: dict[str, OnnxModel], x: Tensor, threads: int, rounds: int) -> dict[str, Timing]:
    """Every session on x in turn; with one thread in CPU time, where what other processes take does not count."""
    calls = {name: (lambda session=session: session(x)) for name, session in sessions.items()}
    clock = time.process_time if threads == 1 else time.perf_counter
    return {timing.name: timing for timing in interleave(calls, "plain", rounds, warmup=2, clock=clock)}


def _figure(case: Case, batch: int, threads: int, timings: dict[str, Timing], sizes: dict[str, int]) -> dict[str, Any]:
    return {
        "model": case.name,
        "batch": batch,
        "threads": threads,
        "timings": [asdict(timing) for timing in timings.values()],
        "ratio": timings["up"].overhead / timings["by hand"].overhead,
        "arithmetic": arithmetic(case),
        "bytes": sizes,
    }


def _row(figure: dict[str, Any], timings: dict[str, Timing]) -> list[str]:
    shown = [f"{timings[name].overhead:+.1%}" for name in NAMES[1:]]
    first = [figure["model"], str(figure["batch"]), str(figure["threads"])]
    plain = f"{timings['plain'].milliseconds:.1f} ms"
    return [*first, plain, *shown, f"{figure['ratio']:.2f}", f"+{figure['arithmetic']:.1%}"]


def version() -> str:
    """Of ONNX Runtime."""
    import onnxruntime

    return str(onnxruntime.__version__)
