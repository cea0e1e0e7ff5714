"""`noble-fx kernels`: a layer's GPU kernels as text, or what the compiler makes of them."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.syntax import Syntax

import noble_fx
from noble_fx.cli.arguments import add_layer, console, print_json
from noble_fx.codegen.report.kernel_set import dtype_of, resource_table

TEXT = "print a layer's GPU kernels, or what the compiler makes of them"


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The command's own options."""
    add_layer(command)
    command.add_argument("--kernel", metavar="NAME", help="this kernel only")
    command.add_argument("--target", help="compile for sm_80, sm_90, gfx942 … and print the resources; no GPU needed")
    command.add_argument("--write", type=Path, metavar="FOLDER", help="write the sources into a new folder")


def run(args: argparse.Namespace) -> None:
    """Print the sources, or a table where they were written or compiled."""
    kernels = noble_fx.kernels(
        args.act,
        in_features=args.in_features,
        out_features=args.out_features,
        rank=args.rank,
        dtype=dtype_of(args.dtype),
        bias=not args.no_bias,
        preset=args.preset,
    )
    if args.kernel:
        kernels = kernels.only(args.kernel)
    if args.write:
        kernels.write(args.write)
    resources = kernels.compile(args.target) if args.target else {}
    if args.json:
        print_json({"sources": kernels.sources, "resources": {name: vars(each) for name, each in resources.items()}})
        return
    shown = console()
    if args.target:
        shown.print(kernels)
        shown.print(resource_table(resources, args.target))
    elif args.write:
        shown.print(kernels)
    else:
        for source in kernels.sources.values():
            if shown.is_terminal:
                shown.print(Syntax(source, "python"))
            else:  # as it is, so that it can be piped into a file
                print(source)
