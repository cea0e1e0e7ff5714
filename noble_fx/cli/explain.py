"""`noble-fx explain`: transform a model and account for it, or read a file's account; of two, what is another."""

from __future__ import annotations

import argparse

import noble_fx
from noble_fx.cli.arguments import add_model, add_settings, console, print_json, settings
from noble_fx.explain import Explanation
from noble_fx.model_spec import build_model, is_written

TEXT = "transform a model and account for it: sites, passes, cost; of two, what is another"


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The command's own options."""
    add_model(command, "a model, FILE.onnx, or a folder of noble_fx.save")
    command.add_argument("other", nargs="?", help="a second one: print what is another in it")
    command.add_argument("--diff", metavar="OTHER", help="the same as a second model")
    add_settings(command)


def run(args: argparse.Namespace) -> None:
    """Print the account, or the difference."""
    first, other = _explained(args.model, args), args.other or args.diff
    answer = first.diff(_explained(other, args)) if other else first
    if args.json:
        print_json(answer.to_dict())
    else:
        console().print(answer)


def _explained(spec: str, args: argparse.Namespace) -> Explanation:
    if is_written(spec):
        return noble_fx.explain(spec)
    return noble_fx.explain(noble_fx.transform(build_model(spec), **settings(args)))
