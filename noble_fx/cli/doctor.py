"""`noble-fx doctor`: versions, GPUs, kernels and the cache, and one layer tried; status 1 where that is wrong."""

from __future__ import annotations

import argparse

from noble_fx.cli.arguments import console, print_json
from noble_fx.doctor import examine

TEXT = "look at versions, GPUs, kernels and the cache, and try one layer"


def add_arguments(command: argparse.ArgumentParser) -> None:
    """It has no options of its own."""


def run(args: argparse.Namespace) -> int:
    """Print what was found."""
    found = examine()
    if args.json:
        print_json(found.to_dict())
    else:
        console().print(found)
    return 0 if found.agrees else 1
