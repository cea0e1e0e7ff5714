"""What several commands share: a model and its settings, a layer's sizes, and where their answers are printed."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from typing import Any

from rich.console import Console

import noble_fx

PIPE_WIDTH = 200  # columns, of what is no terminal
# Fields of NobleConfig that a text can name.
_SETTINGS = ("branch", "act", "select", "exclude", "preset", "capture", "scope")


def add_model(command: argparse.ArgumentParser, what: str) -> None:
    """The model, by its name."""
    command.add_argument("model", help=f"{what}: package.module:factory or hf:CONFIG.json")


def add_settings(command: argparse.ArgumentParser) -> None:
    """The settings of a transform."""
    command.add_argument("--rank", type=_rank, help='an integer, a share such as 0.05, or a budget such as "4%%"')
    for field in _SETTINGS:
        command.add_argument(f"--{field}", help=f"as in noble_fx.transform (default: {_default(field)!r})")


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """Those that were given."""
    return {name: value for name in ("rank", *_SETTINGS) if (value := getattr(args, name)) is not None}


def _default(field: str) -> Any:
    return {f.name: f.default for f in dataclasses.fields(noble_fx.NobleConfig)}[field]


def _rank(text: str) -> int | float | str:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return text


def add_layer(
    command: argparse.ArgumentParser, in_features: int = 4096, out_features: int = 4096, dtype: str = "bf16"
) -> None:
    """The sizes of one layer, its σ and its dtype, with these defaults."""
    command.add_argument("--act", default="cosnet", help="a name of noble_fx.activation_names() (default: cosnet)")
    sizes = ("--in", "in_features", "K", in_features), ("--out", "out_features", "N", out_features)
    for flag, field, letter, size in sizes:
        command.add_argument(flag, type=int, default=size, dest=field, metavar=letter, help=f"default: {size}")
    command.add_argument("--rank", type=int, default=64, help="default: 64")
    command.add_argument("--dtype", default=dtype, help=f"bf16, fp16 or fp32 (default: {dtype})")
    command.add_argument("--preset", default="paper", help=f"{', '.join(noble_fx.PRESETS)} (default: paper)")
    command.add_argument("--no-bias", action="store_true", help="a layer without a bias of its own")


def print_json(value: Any) -> None:
    """Plain JSON on the standard output."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def console() -> Console:
    """The terminal, at its width; a pipe has none, and names in it are to be found whole."""
    return Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)
