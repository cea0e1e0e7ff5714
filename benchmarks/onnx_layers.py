"""What a branch costs layer by layer in a runtime on the CPU, by width: what `join` is decided by.

    python -m benchmarks onnx_layers

Chains of layers of one width, without anything between them, in the same five forms as `benchmarks.onnx`; one thread,
CPU seconds; in ONNX Runtime, in OpenVINO, and in OpenVINO as it is left to itself where the CPU multiplies bfloat16.
Widths whose rows are a multiple of 4 KiB (1024 float32) cost the plain model more than others on some CPUs.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from benchmarks import openvino_model
from benchmarks.onnx import NAMES, export_forms, timed, version
from noble_fx.interleaved import machine
from noble_fx.runtime import OnnxModel

# (widths of one link, rank, links): a chain is long enough that its weights do not stay in the caches.
CHAINS = [
    ((384,), 32, 48),
    ((384, 1536), 32, 12),
    ((768,), 16, 24),
    ((768,), 64, 24),
    ((768, 3072), 64, 6),
    ((960,), 64, 12),
    ((1024,), 16, 12),
    ((1024,), 64, 12),
    ((1024, 4096), 64, 3),
    ((2048,), 64, 4),
    ((4096,), 64, 2),
]
ROWS = (1, 128, 1024)


def runtimes() -> dict[str, Callable[[Path], Any]]:
    """What opens a file, by runtime."""
    found: dict[str, Callable[[Path], Any]] = {
        "ONNX Runtime": lambda path: OnnxModel(path, device="cpu", threads=1),
        "OpenVINO": lambda path: openvino_model.OpenVino(path, 1),
    }
    if openvino_model.has_bfloat16():
        found["OpenVINO, bfloat16"] = lambda path: openvino_model.OpenVino(path, 1, "bf16")
    return found


def chain(widths: tuple[int, ...], links: int) -> nn.Sequential:
    """x [rows, widths[0]] -> the same shape, through every width in turn."""
    turns = [*widths * links, widths[0]]
    return nn.Sequential(*(nn.Linear(k, n) for k, n in itertools.pairwise(turns)))


def run(rounds: int = 24) -> dict[str, object]:
    """Every chain in every runtime at every number of rows; prints a table and returns every figure."""
    table = Table(box=None, header_style="bold")
    for column in ("layers", "r", "runtime", "rows", *NAMES):
        table.add_column(column, justify="left" if column in ("layers", "runtime") else "right")
    figures: list[dict[str, Any]] = []
    for widths, rank, links in CHAINS:
        torch.manual_seed(0)
        plain = chain(widths, links).eval()
        with tempfile.TemporaryDirectory() as folder:
            with contextlib.redirect_stdout(io.StringIO()):
                paths = export_forms(plain, torch.randn(3, widths[0]), Path(folder), rank, select=r"\d+")
            for runtime, opened in runtimes().items():
                sessions = {form: opened(path) for form, path in paths.items()}
                for rows in ROWS:
                    timings = timed(sessions, torch.randn(rows, widths[0]), 1, max(rounds * 128 // max(rows, 32), 8))
                    figure = {"runtime": runtime, "widths": widths, "rank": rank, "rows": rows}
                    figures.append({**figure, "timings": list(map(asdict, timings.values()))})
                    table.add_row(*_row(figure, timings))
    Console(width=130).print(table)
    versions = {"onnxruntime": version(), "openvino": openvino_model.version()}
    return {"machine": {**machine(), **versions, "threads": 1}, "rounds": rounds, "figures": figures}


def _row(figure: dict[str, Any], timings: dict[str, Any]) -> list[str]:
    widths = figure["widths"]
    layers = " → ".join(map(str, (*widths, widths[0])))
    shown = [f"{timings[form].overhead:+.1%}" for form in NAMES[1:]]
    first = [layers, str(figure["rank"]), figure["runtime"], str(figure["rows"])]
    return [*first, f"{timings['plain'].milliseconds:.1f} ms", *shown]
