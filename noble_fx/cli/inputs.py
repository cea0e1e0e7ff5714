"""`--input`: example inputs of a model, described on the command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from noble_fx.errors import ConfigError

DTYPES = {
    name: getattr(torch, name)
    for name in ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int8", "uint8", "bool")
}
Inputs = tuple[tuple[Tensor, ...], dict[str, Tensor]]  # by place, by name


def add_inputs(command: argparse.ArgumentParser) -> None:
    """The option itself, once for each input."""
    command.add_argument(
        "--input",
        action="append",
        default=[],
        dest="inputs",
        metavar="[NAME=]SHAPE[:DTYPE]",
        help="an example input, such as 2x16:int64 or input_ids=2x16:int64; repeat for several",
    )


def needed_inputs(specs: Sequence[str], model: nn.Module) -> Inputs:
    """As `example_inputs`; a language model gets token ids by itself, any other must be told some."""
    if not specs and hasattr(getattr(model, "config", None), "vocab_size"):
        specs = ["input_ids=2x8:int64"]
    if not specs:
        raise ConfigError("export needs an example input: --input 2x16:int64, or --input NAME=2x3x224x224 for floats")
    return example_inputs(specs, model)


def example_inputs(specs: Sequence[str], model: nn.Module) -> Inputs:
    """Example inputs by place and by name, as they are described; raises `ConfigError` for what is no description."""
    tensors = [_example_input(spec, model) for spec in specs]
    return tuple(t for name, t in tensors if not name), {name: t for name, t in tensors if name}


def _example_input(spec: str, model: nn.Module) -> tuple[str, Tensor]:
    name, _, rest = spec.rpartition("=")
    sizes, _, dtype = rest.partition(":")
    try:
        shape = [int(size) for size in sizes.split("x")]
        kind = DTYPES[dtype] if dtype else _dtype_of(model)
    except (ValueError, KeyError):
        dtypes = ", ".join(DTYPES)
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
