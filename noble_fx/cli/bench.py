"""`noble-fx bench`: one layer on this machine, plain, written by hand, and by noble_fx."""

from __future__ import annotations

import argparse

from noble_fx.bench import bench
from noble_fx.cli.arguments import add_layer, console, print_json
from noble_fx.codegen.report.kernel_set import dtype_of

TEXT = "time one layer here: plain, with a branch written by hand, and by noble_fx"


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The command's own options."""
    add_layer(command, in_features=768, out_features=768, dtype="fp32")
    command.add_argument("--rows", type=int, default=512, help="rows of x, or tokens (default: 512)")
    command.add_argument("--rounds", type=int, default=100, help="how often each takes its turn (default: 100)")
    command.add_argument("--device", help="cpu or cuda (default: a GPU where there is one)")


def run(args: argparse.Namespace) -> None:
    """Print the table."""
    result = bench(
        args.in_features,
        args.out_features,
        args.rank,
        act=args.act,
        rows=args.rows,
        rounds=args.rounds,
        dtype=dtype_of(args.dtype),
        bias=not args.no_bias,
        preset=args.preset,
        device=args.device,
    )
    if args.json:
        print_json(result.to_dict())
    else:
        console().print(result)
