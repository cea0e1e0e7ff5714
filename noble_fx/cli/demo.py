"""`noble-fx demo`: train a byte-level GPT plain and with NOBLE, export it, run it."""

from __future__ import annotations

import argparse
from pathlib import Path

TEXT = "train a byte-level GPT plain and with NOBLE, export it, run it"
_SETTINGS = ("steps", "lr", "rank", "seed", "folder")


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The command's own options."""
    command.add_argument("--steps", type=int, help="optimizer steps of each training")
    command.add_argument("--lr", type=float, help="peak learning rate of both (default: each model's own best)")
    command.add_argument("--rank", type=int, help="rank of the branches")
    command.add_argument("--seed", type=int, help="seed of weights and batches")
    command.add_argument("--out", type=Path, dest="folder", metavar="FOLDER", help="where to write (default: demo/)")


def run(args: argparse.Namespace) -> None:
    """Run the demo with what was given."""
    from noble_fx.demo import run as demo  # what it draws with is imported when it draws

    demo.run_demo(**{name: value for name in _SETTINGS if (value := getattr(args, name)) is not None})
