"""What a branch costs layer by layer in ONNX Runtime on the CPU, by width: what `join` is decided by.

    python -m benchmarks onnx_layers

Chains of layers of one width, without anything between them, in the same five forms as `benchmarks.onnx`; one thread,
CPU seconds. Widths whose rows are a multiple of 4 KiB (1024 float32) cost the plain model more than others.
"""

from __future__ import annotations

import itertools
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from benchmarks.interleaved import machine
from benchmarks.onnx import NAMES, export_forms, timed, version
from noble_fx.runtime import OnnxModel

# (widths of one link, rank, links): a chain is long enough that its weights do not stay in the caches.
CHAINS = [
    ((384,), 32, 48),
    ((384, 1536), 32, 12),
    ((768,), 64, 24),
    ((768, 3072), 64, 6),
    ((960,), 64, 12),
    ((1024,), 64, 12),
    ((1024, 4096), 64, 3),
    ((2048,), 64, 4),
    ((4096,), 64, 2),
]
ROWS = (1, 128, 1024)


def chain(widths: tuple[int, ...], links: int) -> nn.Sequential:
    """x [rows, widths[0]] -> the same shape, through every width in turn."""
    turns = [*widths * links, widths[0]]
    return nn.Sequential(*(nn.Linear(k, n) for k, n in itertools.pairwise(turns)))


def run(rounds: int = 24) -> dict[str, object]:
    """Every chain at every number of rows; prints a table and returns every figure."""
    table = Table(box=None, header_style="bold")
    for column in ("layers", "r", "rows", *NAMES):
        table.add_column(column, justify="left" if column == "layers" else "right")
    figures: list[dict[str, Any]] = []
    for widths, rank, links in CHAINS:
        torch.manual_seed(0)
        plain = chain(widths, links).eval()
        name = " → ".join(map(str, (*widths, widths[0])))
        with tempfile.TemporaryDirectory() as folder:
            paths = export_forms(plain, torch.randn(3, widths[0]), Path(folder), rank, select=r"\d+")
            sessions = {form: OnnxModel(path, device="cpu", threads=1) for form, path in paths.items()}
            for rows in ROWS:
                timings = timed(sessions, torch.randn(rows, widths[0]), 1, max(rounds * 128 // max(rows, 128), 8))
                figures.append(
                    {"widths": widths, "rank": rank, "rows": rows, "timings": list(map(asdict, timings.values()))}
                )
                shown = [f"{timings[form].overhead:+.1%}" for form in NAMES[1:]]
                table.add_row(name, str(rank), str(rows), f"{timings['plain'].milliseconds:.1f} ms", *shown)
    Console(width=110).print(table)
    return {"machine": {**machine(), "onnxruntime": version(), "threads": 1}, "rounds": rounds, "figures": figures}
