"""`noble-fx demo | sites | explain | export | kernels | doctor`: the library's verbs from the command line.

A model is given as `package.module:factory` (called without arguments; the current folder is importable) or as
`hf:CONFIG.json`, a Hugging Face config, built with random weights. `sites` and `explain` build it on the meta device,
so a 70-billion-parameter config takes seconds and no memory, and also take an exported `FILE.onnx`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.syntax import Syntax
from rich.text import Text
from torch import Tensor, nn

import noble_fx
from noble_fx.codegen.report.kernel_set import dtype_of, resource_table
from noble_fx.doctor import examine
from noble_fx.errors import ConfigError, NobleError, printable
from noble_fx.explaining.account import PLANNED
from noble_fx.explaining.planned import planned_entries
from noble_fx.explaining.terminal import map_table, rows
from noble_fx.model_spec import build_model
from noble_fx.onnx_export.export import STAGES

PIPE_WIDTH = 200  # columns, of what is no terminal
_DTYPES = {
    name: getattr(torch, name)
    for name in ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int8", "uint8", "bool")
}
_SETTINGS = (
    "branch",
    "act",
    "select",
    "exclude",
    "preset",
    "capture",
    "scope",
)  # fields of NobleConfig that a text can name


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status, 2 for an error in what was asked for."""
    args = _parser().parse_args(argv)
    try:
        status = args.run(args)
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="noble-fx", description=noble_fx.__doc__.splitlines()[0])
    parser.add_argument("--version", action="version", version=f"noble-fx {noble_fx.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    demo = commands.add_parser("demo", help="train a byte-level GPT plain and with NOBLE, export it, run it")
    demo.add_argument("--steps", type=int, help="optimizer steps of each training")
    demo.add_argument("--lr", type=float, help="peak learning rate of both trainings (default: each model's own best)")
    demo.add_argument("--rank", type=int, help="rank of the branches")
    demo.add_argument("--seed", type=int, help="seed of weights and batches")
    demo.add_argument("--out", type=Path, dest="folder", metavar="FOLDER", help="where to write (default: demo/)")
    demo.set_defaults(run=_demo)

    doctor = commands.add_parser("doctor", help="look at versions, GPUs, kernels and the cache, and try one layer")
    doctor.add_argument("--json", action="store_true", help="print JSON instead of a table")
    doctor.set_defaults(run=_doctor)

    _kernels_command(commands)
    _model_command(commands, "sites", "list the linear maps of a model and what would be augmented", _sites)
    _model_command(commands, "explain", "transform a model and account for it: sites, passes, cost", _explain)
    export = _model_command(commands, "export", "transform a model and write it to an ONNX file, verified", _export)
    export.add_argument("--out", type=Path, default=Path("model.onnx"), help="the file (default: model.onnx)")
    export.add_argument(
        "--input",
        action="append",
        dest="inputs",
        metavar="[NAME=]SHAPE[:DTYPE]",
        help="an example input, such as 2x16:int64 or input_ids=2x16:int64; repeat for several",
    )
    export.add_argument("--dtype", choices=_DTYPES, help="of weights and inputs in the file (default: the model's)")
    export.add_argument("--opset", type=int, help="ONNX opset (default: the exporter's choice)")
    export.add_argument("--weights", type=Path, metavar="FOLDER", help="fill the model from a noble_fx.save folder")
    export.add_argument("--functions", action="store_true", help="each site one noble_fx::Linear node")
    export.add_argument("--no-fold", action="store_true", help="leave the constants of σ where they are")
    export.add_argument(
        "--join",
        choices=("auto", "up", "down", "no"),
        default="auto",
        help="W and U, or W and D, one matrix (default: auto)",
    )
    export.add_argument("--verify", choices=("yes", "warn", "no"), default="yes", help="compare with PyTorch")
    export.add_argument("--overwrite", action="store_true", help="replace an existing file")
    return parser


def _kernels_command(commands: Any) -> None:
    command = commands.add_parser("kernels", help="print a layer's GPU kernels, or what the compiler makes of them")
    command.add_argument("--act", default="cosnet", help="a name of noble_fx.activation_names() (default: cosnet)")
    command.add_argument("--in", type=int, default=4096, dest="in_features", metavar="K", help="default: 4096")
    command.add_argument("--out", type=int, default=4096, dest="out_features", metavar="N", help="default: 4096")
    command.add_argument("--rank", type=int, default=64, help="default: 64")
    command.add_argument("--dtype", default="bf16", help="bf16, fp16 or fp32 (default: bf16)")
    command.add_argument("--preset", default="paper", help="paper or reference (default: paper)")
    command.add_argument("--no-bias", action="store_true", help="a layer without a bias of its own")
    command.add_argument("--kernel", metavar="NAME", help="this kernel only")
    command.add_argument("--target", help="compile for sm_80, sm_90, gfx942 … and print the resources; no GPU needed")
    command.add_argument("--write", type=Path, metavar="FOLDER", help="write the sources into a new folder")
    command.set_defaults(run=_kernels)


def _model_command(commands: Any, name: str, text: str, run: Callable[[argparse.Namespace], None]) -> Any:
    command = commands.add_parser(name, help=text, description=f"{text}. {__doc__.split('A model is', 1)[1].strip()}")
    command.add_argument("model", help="package.module:factory or hf:CONFIG.json")
    command.add_argument("--rank", type=_rank, help='an integer, a share such as 0.05, or a budget such as "4%%"')
    command.add_argument("--json", action="store_true", help="print JSON instead of a table")
    for field in _SETTINGS:
        command.add_argument(f"--{field}", help=f"as in noble_fx.transform (default: {_default(field)!r})")
    command.set_defaults(run=run)
    return command


def _default(field: str) -> Any:
    return {f.name: f.default for f in dataclasses.fields(noble_fx.NobleConfig)}[field]


def _rank(text: str) -> int | float | str:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return text


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    return {name: value for name in ("rank", *_SETTINGS) if (value := getattr(args, name)) is not None}


def _demo(args: argparse.Namespace) -> None:
    settings = {name: getattr(args, name) for name in ("steps", "lr", "rank", "seed", "folder")}
    from noble_fx.demo.run import run_demo

    run_demo(**{name: value for name, value in settings.items() if value is not None})


def _sites(args: argparse.Namespace) -> None:
    sites = noble_fx.sites(args.model if _is_file(args.model) else build_model(args.model), **_settings(args))
    if args.json:
        print(json.dumps([site.to_dict() for site in sites], indent=2, ensure_ascii=False))
    else:
        entries = planned_entries(sites, PLANNED, None)
        _console().print(map_table(rows(entries)))


def _explain(args: argparse.Namespace) -> None:
    from_file = _is_file(args.model)
    model = args.model if from_file else noble_fx.transform(build_model(args.model), **_settings(args))
    explanation = noble_fx.explain(model)
    if args.json:
        print(json.dumps(explanation.to_dict(), indent=2, ensure_ascii=False))
    else:
        print(explanation)


def _doctor(args: argparse.Namespace) -> int:
    found = examine()
    if args.json:
        print(json.dumps(found.to_dict(), indent=2, ensure_ascii=False))
    else:
        _console().print(found)
    return 0 if found.agrees else 1


def _kernels(args: argparse.Namespace) -> None:
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
    console = _console()
    if args.target:
        console.print(kernels)
        console.print(resource_table(kernels.compile(args.target), args.target))
    elif args.write:
        console.print(kernels)
    else:
        for source in kernels.sources.values():
            if console.is_terminal:
                console.print(Syntax(source, "python"))
            else:  # as it is, so that it can be piped into a file
                print(source)


def _is_file(spec: str) -> bool:
    return spec.endswith(".onnx")


def _export(args: argparse.Namespace) -> None:
    model = build_model(args.model, device="cpu").eval()
    examples, named = _example_inputs(args.inputs or [], model)
    if args.weights is not None:
        model = noble_fx.load(model, args.weights)
    else:
        inputs = (examples, named) if args.capture == "export" else (None, None)
        model = noble_fx.transform(model, example_inputs=inputs[0], example_kwargs=inputs[1], **_settings(args))
    console = _console()
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    bar = Progress(*columns, console=console, transient=True)
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
        print(json.dumps({**dataclasses.asdict(report), "path": str(report.path)}, indent=2, ensure_ascii=False))
    else:
        console.print(report)


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


def _console() -> Console:
    """The terminal, at its width; a pipe has none, and names in it are to be found whole."""
    return Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)
