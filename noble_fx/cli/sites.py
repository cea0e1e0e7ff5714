"""`noble-fx sites`: the linear maps of a model or of a file, and what would be augmented."""

from __future__ import annotations

import argparse

import noble_fx
from noble_fx.cli.arguments import add_model, add_settings, console, print_json, settings
from noble_fx.config import NobleConfig
from noble_fx.explaining.account import PLANNED
from noble_fx.explaining.planned import planned_entries
from noble_fx.explaining.terminal import map_rows, rows
from noble_fx.model_spec import build_model, is_written

TEXT = "list the linear maps of a model and what would be augmented"


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The command's own options."""
    add_model(command, "a model, FILE.onnx, or a folder of noble_fx.save")
    add_settings(command)


def run(args: argparse.Namespace) -> None:
    """Print every linear map with its reason."""
    if is_written(args.model):
        entries = noble_fx.explain(args.model).entries
    else:
        config = NobleConfig.of(None, settings(args))
        entries = planned_entries(noble_fx.sites(build_model(args.model), config), PLANNED, config)
    if args.json:
        print_json([entry.site.to_dict() for entry in entries])
        return
    shown = console()
    for line in map_rows(rows(entries), shown.width):
        shown.print(line)
