"""Capture a model with `torch.export`, once in train and once in eval mode, over the same parameters.

Export runs the model's Python on fake tensors, so it needs example inputs, takes any model whose Python does not
branch on values, and sees every product: attention written with raw parameters, stacked experts, functional linears.
Batch and sequence sizes stay dynamic (`Dim.AUTO`) unless the caller says else; everything that is not a tensor is
fixed to its example. It works on copies, on which each program must do what the model does
(`captures/example_run.py`).
"""

from __future__ import annotations

import copy
import inspect
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from noble_fx.captures.assumed import Assumed, check_hooks
from noble_fx.captures.base import Capture, Declined, Examples, Plan
from noble_fx.captures.block_places import candidates, places_shown, shown_in
from noble_fx.captures.call import Call, Fixed
from noble_fx.captures.example_inputs import describe
from noble_fx.captures.example_run import check_same, watched_run, working_copy
from noble_fx.captures.exported_model import (
    MODES,
    Captured,
    ExportedModel,
    GraphOverTree,
    Graphs,
    Held,
    use_graphs,
)
from noble_fx.captures.in_place import leave_class
from noble_fx.captures.plain_graph import plain_graph
from noble_fx.captures.torch_export import (
    at_least_two,
    automatic_shapes,
    blames_shapes,
    bound_arguments,
    export_program,
    first_line,
    misfit,
    user_inputs,
    without_cache,
)
from noble_fx.config import NobleConfig
from noble_fx.errors import CaptureError, Refusal
from noble_fx.passes.history import History
from noble_fx.passes.pipeline import PIPELINES
from noble_fx.passes.rule import run_passes
from noble_fx.sites.choose import choose
from noble_fx.sites.find import LinearMap, find_maps
from noble_fx.sites.site import BLOCK, Site
from noble_fx.torch_versions import decides_on_values

_NOT_THE_MODELS = (str(Path(torch.__file__).parent), str(Path(__file__).parent), "<")
# transformers' own, from a model's first call on: they collect states that were asked for, which a program returns.
_COLLECTS = "transformers.utils.output_capturing"
_CACHES = ("past_key_values", "past_key_value", "cache_params", "past_buckets_states")


@dataclass(frozen=True)
class Bound:
    """The example inputs by argument name, and `dynamic_shapes` for each; `given_shapes` where the caller gave any."""

    arguments: dict[str, Any]
    shapes: dict[str, Any]
    given_shapes: bool
    notes: tuple[str, ...]


class Export(Capture):
    """`torch.export` from example inputs, once in each mode, behind one module."""

    takes_examples = True

    def plan(self, model: nn.Module, config: NobleConfig, examples: Examples) -> Plan | Refusal:
        try:
            with places_shown(model, candidates(model, config)):
                captured = export(model, examples)
        except Declined as reason:
            return Refusal(str(reason))
        maps = find_maps(model, graphs=list(captured.graphs.base.values()))
        sites = choose(model, maps, config)
        hidden = _not_run(captured, sites)
        return hidden or Plan(config, sites, captured)

    def build(self, model: nn.Module, plan: Plan) -> nn.Module:
        captured: Captured = plan.graphs
        running = {mode: copy.deepcopy(graph) for mode, graph in captured.graphs.base.items()}
        ExportedModel.noble_enter(model, Held(captured, running, {}))
        self.rewrite(model, "train")
        if plan.config.scope == BLOCK:
            _without_places(model, captured.graphs)
        return model

    def maps(self, model: Any) -> list[LinearMap]:
        return (
            find_maps(model, graphs=list(model.noble_graphs.base.values()))
            if self.holds(model)
            else super().maps(model)
        )

    def holds(self, module: nn.Module) -> bool:
        return isinstance(module, ExportedModel)

    def graphs(self, module: Any) -> dict[str, fx.GraphModule]:
        return dict(module.noble_modules)

    def rewrite(self, module: Any, pipeline: str) -> History:
        steps = super().rewrite(module, pipeline)
        for check in module.noble_checks.values():
            check.take_branches(module)
        return steps

    @contextmanager
    def disabled(self, module: Any) -> Iterator[None]:
        running = module.noble_modules
        try:
            use_graphs(module, module.noble_graphs.base, {})
            yield
        finally:
            vars(module)["noble_modules"] = running

    def remove(self, module: Any) -> None:
        leave_class(module)

    def inputs(self, module: Any) -> dict[str, Any] | None:
        return describe(module.noble_call.examples)

    def notes(self, module: Any) -> tuple[str, ...]:
        return module.noble_call.notes


def _not_run(captured: Captured, sites: Iterable[Site]) -> Refusal | None:
    """Why a chosen block has no place in a graph."""
    for mode, graph in captured.graphs.base.items():
        shown = shown_in(graph)
        for site in sites:
            if site.selected and site.is_block and site.fqn not in shown:
                return Refusal(f"{site.fqn} is not run in {mode} mode on the example inputs")
    return None


def _without_places(model: nn.Module, graphs: Graphs) -> None:
    """Take the places of branches out of the graphs of the base model, in place."""
    for mode, graph in graphs.base.items():
        module = GraphOverTree(model, graph, graphs.constants, "Base")
        run_passes(module, PIPELINES["base"])
        graphs.base[mode] = module.graph


def export(model: nn.Module, examples: Examples) -> Captured:
    """Both programs of `model` and how to call them; raises `CaptureError` or `Declined` with the first cause."""
    _check_kind(model)
    _check_inside(model)
    bound = _bound(model, examples)
    programs: dict[str, ExportedProgram] = {}
    assumed: dict[str, Assumed] = {}
    for mode in MODES:
        programs[mode], assumed[mode] = _checked_program(model, bound, mode)
    constants: dict[str, Any] = {}
    graphs = {
        mode: plain_graph(program.module(check_guards=False), model, constants, mode)
        for mode, program in programs.items()
    }
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    return Captured(Graphs(graphs, constants, like.device, like.dtype), _call(model, bound, programs), assumed)


def export_once(model: nn.Module, examples: Examples) -> tuple[fx.Graph, dict[str, Any]]:
    """The graph of `model` in the mode that it is in, and its constants; raises what `export` raises."""
    constants: dict[str, Any] = {}
    program = _program(model, _bound(model, examples))
    return plain_graph(program.module(check_guards=False), model, constants, "looking"), constants


def _check_kind(model: nn.Module) -> None:
    if isinstance(model, fx.GraphModule):
        raise CaptureError(
            "the model is a GraphModule, a graph of one mode already, and capture='export' needs the Python model for "
            "both"
        ).leading_nowhere()
    if "forward" in vars(model):
        raise Declined("its forward was replaced on the object itself, which would run instead of the graphs")


def _check_inside(model: nn.Module) -> None:
    """Raise `Declined` for what is done around the modules inside, whose place the graphs take."""
    check_hooks(model)
    for name, module in model.named_modules():
        hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        if name and any(str(getattr(hook, "__module__", "")) != _COLLECTS for hook in hooks):
            raise Declined(f"{name} has hooks, which a graph would not call")
        if "forward" in vars(module):
            raise Declined(f"the forward of {name} was replaced on the object itself")


# --- example inputs --------------------------------------------------------------------------------------------------


def _bound(model: nn.Module, examples: Examples) -> Bound:
    if not any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves((examples.args, examples.kwargs))):
        raise CaptureError(
            "capture='export' runs the model once on example inputs, and none were given as example_inputs=(x, …) or "
            "example_kwargs={'input_ids': …}"
        ).leading_nowhere()
    _check_devices(model, examples.args, examples.kwargs)
    signature = inspect.signature(model.forward)
    for name in _CACHES:
        if examples.kwargs.get(name) is not None:
            raise CaptureError(
                f"{name!r} is a key–value cache, which is exported without; leave it out of the examples"
            )
    kwargs = without_cache(model, examples.kwargs, CaptureError)
    try:
        arguments = bound_arguments(model, examples.args, kwargs)
    except TypeError as error:
        raise CaptureError(
            f"the example inputs do not fit forward{signature}: {error}; correct example_inputs or example_kwargs"
        ) from None
    kinds = {name: parameter.kind for name, parameter in signature.parameters.items()}
    unnamed = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.POSITIONAL_ONLY)
    if inspect.Parameter.POSITIONAL_ONLY in kinds.values() or any(kinds.get(name) in unnamed for name in arguments):
        raise CaptureError("forward takes positional-only arguments or *args, which have no names").leading_nowhere()
    notes = ("exported without a key–value cache (use_cache=False)",) if "use_cache" in kinds else ()
    if examples.dynamic_shapes is None:
        arguments = at_least_two(arguments)
    return Bound(arguments, _shapes(arguments, examples.dynamic_shapes), examples.dynamic_shapes is not None, notes)


def _check_devices(model: nn.Module, args: Any, kwargs: Any) -> None:
    device = next((p.device for p in model.parameters()), None)
    for leaf in pytree.tree_leaves((args, kwargs)):
        if isinstance(leaf, Tensor) and device is not None and leaf.device != device:
            raise CaptureError(
                f"an example input is on {leaf.device} and the model on {device}; move it with .to({str(device)!r})"
            )


def _shapes(arguments: dict[str, Any], dynamic_shapes: Any) -> dict[str, Any]:
    """`dynamic_shapes` by argument name, complete; arguments that the caller leaves out are fixed."""
    if dynamic_shapes is None:
        return automatic_shapes(arguments)
    if not isinstance(dynamic_shapes, dict):
        dynamic_shapes = dict(zip(arguments, dynamic_shapes, strict=False))
    if unknown := sorted(set(dynamic_shapes) - set(arguments)):
        raise CaptureError(
            f"dynamic_shapes names {unknown[0]!r}, which is no example input; they are {', '.join(arguments)}"
        )
    return {name: dynamic_shapes.get(name) for name in arguments}


# --- one program -----------------------------------------------------------------------------------------------------


def _checked_program(model: nn.Module, bound: Bound, mode: str) -> tuple[ExportedProgram, Assumed]:
    """The program of that mode, which does what the model does, and what it takes for granted."""
    training = mode == "train"
    run = watched_run(model, bound.arguments, training)
    copied, _ = working_copy(model, training)
    program = _program(copied, bound, run.error)
    if run.error is not None:
        raise Declined(f"it can be exported, but not run{_where(run.error)}: {first_line(run.error)}")
    check_same(model, run, program.module(check_guards=False), copied, bound.arguments)
    return program, Assumed.of([run.watch], any_mode=False)


def _program(model: nn.Module, bound: Bound, own: Exception | None = None) -> ExportedProgram:
    """`model` as one program; `own` is what it raised itself on the same inputs."""
    try:
        return export_program(model, (), bound.arguments, bound.shapes)
    except Exception as error:
        raise _why(model, bound, error, own) from error


def _why(model: nn.Module, bound: Bound, error: Exception, own: Exception | None) -> Exception:
    """The first cause in plain words: a `CaptureError` where the inputs are to blame, else `Declined`."""
    cause = first_line(error)
    if bound.given_shapes and blames_shapes(error):
        return CaptureError(misfit(cause))
    decides = decides_on_values(error)
    if not decides and own is not None:
        return CaptureError(
            f"the model itself fails on the example inputs{_where(own)}: {type(own).__name__}: {first_line(own)}; "
            f"correct example_inputs or example_kwargs"
        )
    if decides or type(error).__name__ == "UserError":  # torch's word for Python that a graph cannot hold
        cause = f"its Python code decides on the values of a tensor, which one graph cannot hold ({cause})"
    tried = f"tried torch.export (non-strict) in {'train' if model.training else 'eval'} mode"
    return Declined(f"{cause}{_where(error)}; {tried}")


def _where(error: BaseException) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(_NOT_THE_MODELS)]
    frames = [f for f in frames if "contextlib" not in f.filename]
    return f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""


def _call(model: nn.Module, bound: Bound, programs: dict[str, ExportedProgram]) -> Call:
    parameters = inspect.signature(model.forward).parameters
    sizes = _fixed_sizes(programs)
    leaves, spec = pytree.tree_flatten(bound.arguments)
    fixed = [Fixed(sizes[i], v.dtype, tuple(v.shape)) if isinstance(v, Tensor) else v for i, v in enumerate(leaves)]
    dynamic = sorted({str(f) for f in fixed if isinstance(f, Fixed)})
    keyword_only = [n for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY]
    return Call(
        names=tuple(n for n, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD),
        keyword_only=(*keyword_only, *(n for n in bound.arguments if n not in parameters)),  # taken by **kwargs
        examples=pytree.tree_unflatten(fixed, spec),
        defaults={n: p.default for n, p in parameters.items() if n not in bound.arguments and p.default is not p.empty},
        out_specs={mode: program.call_spec.out_spec for mode, program in programs.items()},
        notes=(f"inputs {', '.join(dynamic)} (* is any size)", *bound.notes),
    )


def _fixed_sizes(programs: dict[str, ExportedProgram]) -> list[tuple[int | None, ...]]:
    """Per flat input: each size, or None where both programs leave it open."""
    by_mode = [[_sizes(value) for value in user_inputs(program)] for program in programs.values()]
    return [
        tuple(train if train is not None else other for train, other in zip(*sizes, strict=True))
        for sizes in zip(*by_mode, strict=True)
    ]


def _sizes(value: Any) -> tuple[int | None, ...]:
    return tuple(n if isinstance(n, int) else None for n in value.shape) if isinstance(value, Tensor) else ()
