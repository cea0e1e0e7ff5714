"""`noble-fx export`: transform a model, or fill it from a folder, and write it to an ONNX file, verified."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

import noble_fx
from noble_fx.cli.arguments import add_model, add_settings, console, print_json, settings
from noble_fx.cli.inputs import DTYPES, add_inputs, needed_inputs
from noble_fx.model_spec import build_model
from noble_fx.onnx_export.export import STAGES

TEXT = "transform a model and write it to an ONNX file, verified"


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The command's own options."""
    add_model(command, "a model")
    add_settings(command)
    command.add_argument("--out", type=Path, default=Path("model.onnx"), help="the file (default: model.onnx)")
    add_inputs(command)
    command.add_argument("--dtype", choices=DTYPES, help="of weights and inputs in the file (default: the model's)")
    command.add_argument("--opset", type=int, help="ONNX opset (default: the exporter's choice)")
    command.add_argument("--weights", type=Path, metavar="FOLDER", help="fill the model from a noble_fx.save folder")
    command.add_argument("--functions", action="store_true", help="each site one noble_fx::Linear node")
    command.add_argument("--no-fold", action="store_true", help="leave the constants of σ where they are")
    command.add_argument(
        "--join",
        choices=("auto", "up", "down", "no"),
        default="auto",
        help="W and U, or W and D, one matrix (default: auto)",
    )
    command.add_argument("--verify", choices=("yes", "warn", "no"), default="yes", help="compare with PyTorch")
    command.add_argument("--overwrite", action="store_true", help="replace an existing file")


def run(args: argparse.Namespace) -> None:
    """Export, and print the report."""
    model = build_model(args.model, device="cpu").eval()
    examples, named = needed_inputs(args.inputs, model)
    if args.weights is not None:
        model = noble_fx.load(model, args.weights)
    else:
        inputs = (examples, named) if args.capture == "export" else (None, None)
        model = noble_fx.transform(model, example_inputs=inputs[0], example_kwargs=inputs[1], **settings(args))
    shown = console()
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    bar = Progress(*columns, console=shown, transient=True)
    with bar:
        task = bar.add_task("transform", total=len(STAGES))

        def progress(stage: str) -> None:
            bar.update(task, description=stage, completed=STAGES.index(stage))

        report = noble_fx.export_onnx(
            model,
            examples,
            args.out,
            kwargs=named,
            dtype=DTYPES[args.dtype] if args.dtype else None,
            opset=args.opset,
            fold=not args.no_fold,
            join=args.join if args.join != "no" else False,
            functions=args.functions,
            verify=args.verify if args.verify == "warn" else args.verify == "yes",
            overwrite=args.overwrite,
            progress=progress,
        )
    if args.json:
        print_json({**dataclasses.asdict(report), "path": str(report.path)})
    else:
        shown.print(report)
