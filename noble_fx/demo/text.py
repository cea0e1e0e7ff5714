"""Text that every Python installation has, and batches of it.

The text is the source of the running Python's standard library, about 10 MB of it, split by file. Two runs with the
same seed see the same batches whatever their models draw, so that plain and NOBLE can be compared step by step.
"""

from __future__ import annotations

import hashlib
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

# Packages that are no part of the library proper, and two that hold generated tables rather than code.
EXCLUDED = {
    "site-packages",
    "dist-packages",
    "__pycache__",
    "test",
    "tests",
    "idlelib",
    "lib2to3",
    "encodings",
    "pydoc_data",
}


@dataclass(frozen=True)
class Text:
    """Bytes to learn from and bytes to be judged by, each one uint8 tensor."""

    train: Tensor
    validation: Tensor
    train_files: tuple[str, ...]
    validation_files: tuple[str, ...]


def standard_library(root: Path | None = None) -> Text:
    """The *.py files under `root` (default: of the running Python), about 5 % of the files for validation."""
    root = Path(root or sysconfig.get_paths()["stdlib"])
    paths = sorted(p.relative_to(root).as_posix() for p in root.rglob("*.py"))
    paths = [path for path in paths if not EXCLUDED.intersection(path.split("/")) and (root / path).is_file()]
    # The hash of its path decides a file's side, so a file never changes sides when others come or go.
    held_out = [path for path in paths if hashlib.sha256(path.encode()).digest()[0] < 13]
    kept = [path for path in paths if path not in set(held_out)]
    if not kept or not held_out:
        raise FileNotFoundError(f"{root} holds too few *.py files; this Python was installed without its sources")
    return Text(_read(root, kept), _read(root, held_out), tuple(kept), tuple(held_out))


def _read(root: Path, paths: list[str]) -> Tensor:
    return torch.frombuffer(bytearray(b"\n".join((root / path).read_bytes() for path in paths)), dtype=torch.uint8)


def batch_at(text: Tensor, step: int, seed: int, batch: int, context: int) -> tuple[Tensor, Tensor]:
    """The inputs [batch, context] of a step and their next bytes; depends on (seed, step) only."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    starts = torch.randint(len(text) - context, (batch,), generator=generator)
    return _windows(text, starts, context)


def validation_batches(text: Tensor, context: int, batch: int, count: int = 8) -> list[tuple[Tensor, Tensor]]:
    """`count` fixed batches of windows spread evenly over the text."""
    starts = torch.linspace(0, len(text) - context - 1, batch * count).long()
    return [_windows(text, part, context) for part in starts.split(batch)]


def _windows(text: Tensor, starts: Tensor, context: int) -> tuple[Tensor, Tensor]:
    window = text[starts[:, None] + torch.arange(context + 1)].long()
    return window[:, :-1].contiguous(), window[:, 1:].contiguous()
