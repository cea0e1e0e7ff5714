"""What everything that calls `torch.export` here shares: quiet, dynamic sizes, no cache, the first cause in a line."""

from __future__ import annotations

import inspect
import io
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from noble_fx.captures.forward_signature import arguments_named
from noble_fx.errors import NobleError
from noble_fx.exporting import own_export
from noble_fx.random_states import undisturbed
from noble_fx.torch_versions import ABOUT_SHAPES
from noble_fx.tracing_lock import tracing

_LOGGERS = ("torch.onnx", "onnxscript", "onnx_ir", "torch.fx.experimental.symbolic_shapes", "torch.export")


def export_program(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any
) -> ExportedProgram:
    """`model` in the mode that it is in as one program, without a word of torch's own."""
    with tracing(), undisturbed(), quiet(), own_export(), arguments_named(model, kwargs):
        return torch.export.export(model, args, kwargs, dynamic_shapes=dynamic_shapes, strict=False)


def user_inputs(program: ExportedProgram) -> list[Any]:
    """The example values that the program holds for its own inputs, flat; dynamic sizes are symbols."""
    specs = program.graph_signature.input_specs
    nodes = [node for node in program.graph.nodes if node.op == "placeholder"]
    return [n.meta.get("val") for n, s in zip(nodes, specs, strict=True) if s.kind is InputKind.USER_INPUT]


@contextmanager
def quiet() -> Iterator[None]:
    """Exporters print progress and half-made graphs and warn about their own internals; errors say what matters.

    What other threads print meanwhile is printed.
    """
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(_Muted(sys.stdout)), redirect_stderr(_Muted(sys.stderr)):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class _Muted(io.TextIOBase):
    """A stream that drops what this thread writes to it, and passes on what others do."""

    def __init__(self, stream: Any):
        self.stream, self.thread = stream, threading.get_ident()

    def write(self, text: str) -> int:
        return len(text) if threading.get_ident() == self.thread else self.stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


# --- arguments -------------------------------------------------------------------------------------------------------


def bound_arguments(model: nn.Module, args: Any, kwargs: Any) -> dict[str, Any]:
    """Each argument by its name, those of `**kwargs` too; `*args` is one tuple. Raises `TypeError` as a call does."""
    signature = inspect.signature(model.forward)
    arguments = dict(signature.bind(*args, **kwargs).arguments)
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            arguments |= arguments.pop(name, {})
    return arguments


def without_cache(model: nn.Module, kwargs: dict[str, Any], error: type[NobleError]) -> dict[str, Any]:
    """The arguments with `use_cache=False` where forward has such one: a graph returns tensors, not a cache."""
    if "use_cache" not in inspect.signature(model.forward).parameters:
        return kwargs
    if kwargs.get("use_cache"):
        raise error("use_cache=True asks for a key–value cache, and a model is exported without one")
    return {**kwargs, "use_cache": False}


# --- dynamic sizes ---------------------------------------------------------------------------------------------------


def dynamic_axes(tensor: Tensor) -> list[int]:
    """Batch first; a second axis is a sequence for token ids [B, T] and features [B, T, K]."""
    sequence = tensor.ndim == 3 or (tensor.ndim == 2 and not tensor.is_floating_point())
    return [0, 1] if sequence else [0] if tensor.ndim else []


def automatic_shapes(arguments: Any) -> Any:
    """`dynamic_shapes` for a tree of arguments: batch and sequence are whatever they are."""

    def shape(leaf: Any) -> Any:
        return dict.fromkeys(dynamic_axes(leaf), Dim.AUTO) if isinstance(leaf, Tensor) else None

    return pytree.tree_map(shape, arguments)


def at_least_two(arguments: Any) -> Any:
    """torch.export takes a size of 1 for a constant, so along a dynamic axis an example of one is doubled."""

    def doubled(tensor: Tensor) -> Tensor:
        for axis in dynamic_axes(tensor):
            if tensor.shape[axis] == 1:
                tensor = torch.cat([tensor, tensor], dim=axis)
        return tensor

    return pytree.tree_map_only(Tensor, doubled, arguments)


def blames_shapes(error: BaseException) -> bool:
    """True for an exporter's error that is about the dynamic sizes which it was given."""
    return any(word in f"{type(error).__name__}: {error}" for word in ABOUT_SHAPES)


def misfit(cause: str) -> str:
    """What to say of `dynamic_shapes` that do not fit."""
    return f"dynamic_shapes does not fit the model or its example inputs: {cause}; leave it out to have it inferred"


# --- errors ----------------------------------------------------------------------------------------------------------


def first_cause(error: BaseException) -> BaseException:
    """What was raised first: what is raised last is advice of several pages."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def first_line(error: BaseException) -> str:
    """What an exception says, without the pages that follow."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
