"""`noble-fx explain`: transform a model and account for it, or read a file's account; of two, what is another."""

from __future__ import annotations

import argparse
import webbrowser
from pathlib import Path

import noble_fx
from noble_fx.cli.arguments import add_model, add_settings, console, print_json, settings
from noble_fx.cli.inputs import add_inputs, example_inputs
from noble_fx.errors import ConfigError
from noble_fx.explain import Explanation
from noble_fx.model_spec import build_model, is_written

TEXT = "transform a model and account for it: sites, passes, cost; of two, what is another"


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The command's own options."""
    add_model(command, "a model, FILE.onnx, or a folder of noble_fx.save")
    command.add_argument("other", nargs="?", help="a second one: print what is another in it")
    command.add_argument("--diff", metavar="OTHER", help="the same as a second model")
    add_settings(command)
    add_inputs(command)
    command.add_argument("--html", type=Path, metavar="FILE", help="write a page with all of it instead")
    command.add_argument("--open", action="store_true", help="show that page in the browser")


def run(args: argparse.Namespace) -> None:
    """Print the account, or the difference; or write the page."""
    other = args.other or args.diff
    if args.open and args.html is None:
        raise ConfigError("--open shows the page that --html FILE writes; name the file")
    if args.html is not None and other:
        raise ConfigError("--html writes the page of one model; of two there is a table, or --json")
    first = _explained(args.model, args)
    answer = first.diff(_explained(other, args)) if other else first
    if args.html is not None:
        first.to_html(args.html)
        print(args.html)
        if args.open:
            webbrowser.open(args.html.resolve().as_uri())
    elif args.json:
        print_json(answer.to_dict())
    else:
        console().print(answer)


def _explained(spec: str, args: argparse.Namespace) -> Explanation:
    if is_written(spec):
        if args.inputs:
            raise ConfigError(f"--input is for a model; {spec} is a file, which nothing is run of")
        return noble_fx.explain(spec)
    model = build_model(spec)
    by_place, by_name = example_inputs(args.inputs, model)
    return noble_fx.explain(noble_fx.transform(model, **settings(args)), *by_place, **by_name)
