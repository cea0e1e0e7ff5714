"""Capture a model with `torch.export`, once in train and once in eval mode, over the same parameters.

Export runs the model's Python on fake tensors, so it needs example inputs, takes any model whose Python does not
branch on values, and sees every product: attention written with raw parameters, stacked experts, functional linears.
Batch and sequence sizes stay dynamic (`Dim.AUTO`) unless the caller says else; everything that is not a tensor is
fixed to its example.
"""

from __future__ import annotations

import inspect
import io
import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from noble_fx.captures.base import Declined, modes_restored
from noble_fx.captures.call import Call, Fixed
from noble_fx.captures.exported_model import MODES, Graphs
from noble_fx.captures.forward_signature import arguments_named
from noble_fx.captures.fx import trace
from noble_fx.errors import CaptureError

_TORCH = str(Path(torch.__file__).parent)
_CACHES = ("past_key_values", "past_key_value", "cache_params", "past_buckets_states")
_DECIDES = ("GuardOnDataDependentSymNode", "UserError", "DataDependentOutputException", "DynamicOutputShapeException")


@dataclass(frozen=True)
class Examples:
    """What the caller gave, by argument name; `extra` positional ones belong to a *args parameter."""

    arguments: dict[str, Any]
    extra: tuple[Any, ...]
    dynamic_shapes: Any
    notes: tuple[str, ...]


def export(model: nn.Module, args: Any, kwargs: Any, dynamic_shapes: Any = None) -> tuple[Graphs, Call]:
    """Both programs of `model` and how to call them; raises `CaptureError` with the first cause in plain words."""
    _check_kind(model)
    examples = _examples(model, args, kwargs, dynamic_shapes)
    programs = {}
    with modes_restored(model):
        for mode in MODES:
            model.train(mode == "train")
            programs[mode] = _export_once(model, examples)
    graphs: dict[str, fx.Graph] = {}
    constants: dict[str, Any] = {}
    for mode, program in programs.items():
        module = program.module(check_guards=False)
        graphs[mode] = _plain_graph(module, model, constants, mode)
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    held = Graphs(graphs, constants, like.device, like.dtype)
    return held, _call(model, examples, programs)


def _check_kind(model: nn.Module) -> None:
    if isinstance(model, fx.GraphModule):
        raise CaptureError(
            "the model is a GraphModule, a graph of one mode already, and capture='export' needs the Python model for "
            "both; use capture='fx' or 'modules', or transform the original model"
        )


# --- example inputs --------------------------------------------------------------------------------------------------


def _examples(model: nn.Module, args: Any, kwargs: Any, dynamic_shapes: Any) -> Examples:
    args = (args,) if isinstance(args, Tensor) else tuple(args or ())
    kwargs = dict(kwargs or {})
    if not any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves((args, kwargs))):
        raise CaptureError(
            "capture='export' runs the model once on example inputs, and none were given; pass example_inputs=(x, …) "
            "or example_kwargs={'input_ids': …}, or use capture='modules', which needs none"
        )
    _check_devices(model, args, kwargs)
    signature = inspect.signature(model.forward)
    notes = []
    for name in _CACHES:
        if kwargs.get(name) is not None:
            raise CaptureError(
                f"{name!r} is a key–value cache, which is exported without; leave it out of the examples"
            )
    if "use_cache" in signature.parameters:
        if kwargs.get("use_cache"):
            raise CaptureError("use_cache=True asks for a key–value cache, and a model is exported without one")
        kwargs["use_cache"] = False
        notes.append("exported without a key–value cache (use_cache=False)")
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise CaptureError(
            f"the example inputs do not fit forward{signature}: {error}; correct example_inputs or example_kwargs"
        ) from None
    arguments, extra = dict(bound.arguments), ()
    for name, parameter in signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            arguments |= arguments.pop(name, {})
        if parameter.kind is parameter.VAR_POSITIONAL:
            extra = arguments.pop(name, ())
    if extra or any(p.kind is p.POSITIONAL_ONLY for p in signature.parameters.values()):
        raise CaptureError("forward takes positional-only arguments or *args; use capture='modules', or name them")
    if dynamic_shapes is None:
        arguments = pytree.tree_map_only(Tensor, at_least_two, arguments)
    return Examples(arguments, extra, dynamic_shapes, tuple(notes))


def _check_devices(model: nn.Module, args: Any, kwargs: Any) -> None:
    device = next((p.device for p in model.parameters()), None)
    for leaf in pytree.tree_leaves((args, kwargs)):
        if isinstance(leaf, Tensor) and device is not None and leaf.device != device:
            raise CaptureError(
                f"an example input is on {leaf.device} and the model on {device}; move it with .to({str(device)!r})"
            )


def dynamic_axes(tensor: Tensor) -> list[int]:
    """Batch first; a second axis is a sequence for token ids [B, T] and features [B, T, K]."""
    sequence = tensor.ndim == 3 or (tensor.ndim == 2 and not tensor.is_floating_point())
    return [0, 1] if sequence else [0] if tensor.ndim else []


def at_least_two(tensor: Tensor) -> Tensor:
    """torch.export takes a size of 1 for a constant, so an example of batch 1 is doubled."""
    for axis in dynamic_axes(tensor):
        if tensor.shape[axis] == 1:
            tensor = torch.cat([tensor, tensor], dim=axis)
    return tensor


def _shapes(examples: Examples) -> dict[str, Any]:
    """`dynamic_shapes` by argument name, complete; arguments that the caller leaves out are fixed."""
    given = examples.dynamic_shapes
    if given is None:
        given = pytree.tree_map(
            lambda leaf: dict.fromkeys(dynamic_axes(leaf), Dim.AUTO) if isinstance(leaf, Tensor) else None,
            examples.arguments,
        )
    elif not isinstance(given, dict):
        given = dict(zip(examples.arguments, given, strict=False))
    unknown = sorted(set(given) - set(examples.arguments))
    if unknown:
        raise CaptureError(
            f"dynamic_shapes names {unknown[0]!r}, which is no example input; they are {', '.join(examples.arguments)}"
        )
    return {name: given.get(name) for name in examples.arguments}


# --- one program -----------------------------------------------------------------------------------------------------


def _export_once(model: nn.Module, examples: Examples) -> torch.export.ExportedProgram:
    shapes = _shapes(examples)
    try:
        with _quiet(), arguments_named(model, examples.arguments):
            return torch.export.export(model, (), examples.arguments, dynamic_shapes=shapes, strict=False)
    except Exception as error:
        raise CaptureError(_why(model, examples, error)) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """On a failure torch prints its half-made graph; the reason is in the error."""
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


def _why(model: nn.Module, examples: Examples, error: Exception) -> str:
    """The first cause in plain words, what was tried, and which capture would work."""
    tried = f"tried torch.export (non-strict) in {'train' if model.training else 'eval'} mode"
    cause = _first_line(error)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]), _buffers_restored(model):
            model(**examples.arguments)
    except Exception as own:
        return (
            f"the model itself fails on the example inputs{_where(own)}: {type(own).__name__}: {_first_line(own)}; "
            f"correct example_inputs or example_kwargs"
        )
    if examples.dynamic_shapes is not None and ("dynamic_shapes" in str(error) or "onstraint" in str(error)):
        return f"dynamic_shapes does not fit the model or its example inputs: {cause}; leave it out to have it inferred"
    if type(error).__name__ in _DECIDES or "data-dependent" in str(error):
        cause = f"its Python code decides on the values of a tensor, which one graph cannot hold ({cause})"
    try:
        trace(model)
        other = "capture='fx' or 'modules'"
    except Declined:
        other = "capture='modules', which keeps the model's own Python,"
    return f"capture='export' cannot hold this model{_where(error)}: {cause}; {tried}. {other} works"


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _where(error: BaseException) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith((_TORCH, "<"))]
    frames = [f for f in frames if f.filename != __file__ and "contextlib" not in f.filename]
    return f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""


@contextmanager
def _buffers_restored(model: nn.Module) -> Iterator[None]:
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(before[name])


# --- the graph as this project holds it ------------------------------------------------------------------------------


def _plain_graph(module: fx.GraphModule, model: nn.Module, constants: dict[str, Any], mode: str) -> fx.Graph:
    """The program's graph with flat inputs and outputs; what it reads besides the model's own goes to `constants`."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    own = {
        name
        for name, _ in [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    }
    for node in list(graph.nodes):
        if node.op == "call_module":  # torch's own check of the inputs; `Call` does it
            graph.erase_node(node)
        elif node.op == "get_attr" and node.target not in own:
            value = _attribute(module, node.target)
            name = f"_{mode}_{node.target.replace('.', '_')}"
            constants[name], node.target = value, name
    for node in list(graph.nodes):
        if node.target is torch.ops.higher_order.wrap_with_set_grad_enabled:
            _inline_without_grad(graph, node, constants)
    for node in list(graph.nodes):
        if node.op == "get_attr" and not node.users:
            graph.erase_node(node)
    used = {node.target for node in graph.nodes if node.op == "get_attr"}
    for name in [n for n in constants if n.startswith(f"_{mode}_") and n not in used]:
        del constants[name]
    return graph


def _attribute(module: Any, path: str) -> Any:
    for part in path.split("."):
        module = getattr(module, part)
    return module


def _inline_without_grad(graph: fx.Graph, node: fx.Node, constants: dict[str, Any]) -> None:
    """no_grad(f)(x)  ->  f(detach(x)): the same values, and the same lack of gradients, as a flat graph."""
    args: Any = node.args
    enabled, body, *inputs = args
    inner: fx.Graph = constants[str(body.target)].graph
    with graph.inserting_before(node):
        values: dict[fx.Node, Any] = {}
        for placeholder, value in zip((n for n in inner.nodes if n.op == "placeholder"), inputs, strict=True):
            is_tensor = isinstance(value, fx.Node) and isinstance(placeholder.meta.get("val"), Tensor)
            floats = is_tensor and placeholder.meta["val"].is_floating_point()
            cut = floats and not enabled
            values[placeholder] = graph.call_function(torch.ops.aten.detach.default, (value,)) if cut else value
            if cut:
                values[placeholder].meta = dict(value.meta)
        for one in inner.nodes:
            if one.op not in ("placeholder", "output"):
                values[one] = graph.node_copy(one, lambda n: values[n])
    (output,) = (n for n in inner.nodes if n.op == "output")
    results = [values[n] if isinstance(n, fx.Node) else n for n in output.args[0]]
    for user in list(node.users):
        user.replace_all_uses_with(results[user.args[1]])  # type: ignore[index]
        graph.erase_node(user)
    graph.erase_node(node)


def _call(model: nn.Module, examples: Examples, programs: dict[str, torch.export.ExportedProgram]) -> Call:
    parameters = inspect.signature(model.forward).parameters
    sizes = _fixed_sizes(programs)
    leaves, spec = pytree.tree_flatten(examples.arguments)
    fixed = [Fixed(sizes[i], v.dtype, tuple(v.shape)) if isinstance(v, Tensor) else v for i, v in enumerate(leaves)]
    dynamic = sorted({str(f) for f in fixed if isinstance(f, Fixed)})
    keyword_only = [n for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY]
    return Call(
        names=tuple(n for n, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD),
        keyword_only=(*keyword_only, *(n for n in examples.arguments if n not in parameters)),  # taken by **kwargs
        examples=pytree.tree_unflatten(fixed, spec),
        defaults={
            n: p.default for n, p in parameters.items() if n not in examples.arguments and p.default is not p.empty
        },
        positional=len(examples.extra),
        out_specs={mode: program.call_spec.out_spec for mode, program in programs.items()},
        notes=(f"inputs {', '.join(dynamic)} (* is any size)", *examples.notes),
    )


def _fixed_sizes(programs: dict[str, torch.export.ExportedProgram]) -> list[tuple[int | None, ...]]:
    """Per flat input: each size, or None where both programs leave it open."""
    per_mode = []
    for program in programs.values():
        specs = program.graph_signature.input_specs
        placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
        values = []
        for spec, node in zip(specs, placeholders, strict=True):
            if spec.kind is InputKind.USER_INPUT:
                value = node.meta.get("val")
                shape = value.shape if isinstance(value, Tensor) else ()
                values.append(tuple(n if isinstance(n, int) else None for n in shape))
        per_mode.append(values)
    return [
        tuple(a if a is not None else b for a, b in zip(one, other, strict=True))
        for one, other in zip(*per_mode, strict=True)
    ]
