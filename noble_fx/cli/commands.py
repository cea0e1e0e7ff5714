"""The command line as a whole: its commands, and what a shell is told at the end.

0    done
1    `doctor` found something wrong, or whoever reads the output has gone away
2    an error in what was asked for, in one line
130  interrupted; a file is whole or absent then, too
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from types import ModuleType

from rich.console import Console
from rich.text import Text

import noble_fx
from noble_fx.cli import bench, completion, demo, doctor, explain, export, kernels, sites
from noble_fx.errors import NobleError, printable

# Each says TEXT, `add_arguments(command)` and `run(args)`, which answers with the exit status or None.
COMMANDS: dict[str, ModuleType] = {
    "demo": demo,
    "sites": sites,
    "explain": explain,
    "export": export,
    "kernels": kernels,
    "bench": bench,
    "doctor": doctor,
    "completion": completion,
}
_WITHOUT_JSON = ("demo", "completion")
_MODEL = """A model is given as package.module:factory (called without arguments; the current folder is importable) or
as hf:CONFIG.json, a Hugging Face config, built with random weights; sites and explain also take FILE.onnx and a folder
of noble_fx.save. They build it on the meta device, so a 70-billion-parameter config takes seconds and no memory."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    parser = make_parser()
    args = parser.parse_args(argv)
    args.parser = parser  # for the command that tells a shell what there is
    try:
        status = COMMANDS[args.command].run(args)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has seen enough; what is left in the buffer goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except NobleError as error:
        lines = "\n".join(map(printable, str(error).splitlines()))
        Console(stderr=True).print(Text(f"noble-fx: {lines}", style="red"))
        return 2
    except KeyboardInterrupt:
        return 130
    return status or 0


def make_parser() -> argparse.ArgumentParser:
    """Every command with its options."""
    parser = argparse.ArgumentParser(
        prog="noble-fx",
        description=noble_fx.__doc__.splitlines()[0],
        epilog=f"{_MODEL} Exit status: 0 done, 1 doctor found something wrong, 2 a wrong request, 130 interrupted.",
    )
    parser.add_argument("--version", action="version", version=f"noble-fx {noble_fx.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for name, module in COMMANDS.items():
        command = commands.add_parser(name, help=module.TEXT, description=f"{module.TEXT}. {_MODEL}")
        module.add_arguments(command)
        if name not in _WITHOUT_JSON:
            command.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser
