"""`noble-fx export`: transform a model, or fill it from a folder, and write it to an ONNX file, verified."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from torch import Tensor, nn

import noble_fx
from noble_fx.cli.arguments import add_model, add_settings, console, print_json, settings
from noble_fx.errors import ConfigError
from noble_fx.model_spec import build_model
from noble_fx.onnx_export.export import STAGES

TEXT = "transform a model and write it to an ONNX file, verified"
_DTYPES = {
    name: getattr(torch, name)
    for name in ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int8", "uint8", "bool")
}


def add_arguments(command: argparse.ArgumentParser) -> None:
    """The command's own options."""
    add_model(command, "a model")
    add_settings(command)
    command.add_argument("--out", type=Path, default=Path("model.onnx"), help="the file (default: model.onnx)")
    command.add_argument(
        "--input",
        action="append",
        dest="inputs",
        metavar="[NAME=]SHAPE[:DTYPE]",
        help="an example input, such as 2x16:int64 or input_ids=2x16:int64; repeat for several",
    )
    command.add_argument("--dtype", choices=_DTYPES, help="of weights and inputs in the file (default: the model's)")
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
    examples, named = _example_inputs(args.inputs or [], model)
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
            dtype=_DTYPES[args.dtype] if args.dtype else None,
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


def _example_inputs(specs: Sequence[str], model: nn.Module) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Example inputs from their descriptions; a language model gets token ids by itself."""
    if not specs and hasattr(getattr(model, "config", None), "vocab_size"):
        specs = ["input_ids=2x8:int64"]
    if not specs:
        raise ConfigError("export needs an example input: --input 2x16:int64, or --input NAME=2x3x224x224 for floats")
    tensors = [_example_input(spec, model) for spec in specs]
    return tuple(t for name, t in tensors if not name), {name: t for name, t in tensors if name}


def _example_input(spec: str, model: nn.Module) -> tuple[str, Tensor]:
    name, _, rest = spec.rpartition("=")
    sizes, _, dtype = rest.partition(":")
    try:
        shape = [int(size) for size in sizes.split("x")]
        kind = _DTYPES[dtype] if dtype else _dtype_of(model)
    except (ValueError, KeyError):
        dtypes = ", ".join(_DTYPES)
        raise ConfigError(
            f"--input {spec!r} is not [NAME=]SHAPE[:DTYPE], such as x=2x16:int64; dtypes: {dtypes}"
        ) from None
    generator = torch.Generator().manual_seed(0)
    if kind.is_floating_point:
        return name, torch.randn(shape, generator=generator).to(kind)
    if kind == torch.bool:
        return name, torch.ones(shape, dtype=kind)
    top = min([m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)], default=2)
    return name, torch.randint(0, max(top, 1), shape, dtype=kind, generator=generator)


def _dtype_of(model: nn.Module) -> torch.dtype:
    """The dtype of the first floating-point parameter, which a model mostly takes its inputs in."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
