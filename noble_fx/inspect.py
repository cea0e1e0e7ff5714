"""Looking at a model: its sites, its programs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import fx, nn

from noble_fx.attach.attach import branch_paths, named_branches
from noble_fx.attach.carried import carried_sites, module_at
from noble_fx.branches.base import Branch
from noble_fx.captures import dynamo
from noble_fx.captures.base import HISTORY, Examples, check_model
from noble_fx.captures.looking import look
from noble_fx.captures.table import asked, capture_of, captured
from noble_fx.config import NobleConfig
from noble_fx.errors import CaptureError, Refusal
from noble_fx.ops.operands import Operands
from noble_fx.passes.history import Program
from noble_fx.passes.match import ModelGraph, parameter_reads
from noble_fx.schema import LINEAR_GROUP
from noble_fx.sites.choose import choose
from noble_fx.sites.find import find_maps
from noble_fx.sites.from_file import read_sites
from noble_fx.sites.site import Site


def sites(model: nn.Module | str | Path, config: NobleConfig | None = None, **settings: Any) -> tuple[Site, ...]:
    """Every linear map found in `model`, chosen or not, with the reason; never raises for an unsuitable one.

    On a transformed model, what it carries; on a plain one, what `transform` with these settings would choose; of the
    path of an exported ONNX file, what the file says it carries (`ExportError` where it is not one).
    """
    if isinstance(model, str | Path):
        return read_sites(model)
    if named_branches(model):
        capture = capture_of(model)  # the graphs that it runs may show more than its layers do
        return carried_sites(model, capture.maps(model) if capture else find_maps(model))
    check_model(model)
    config = NobleConfig.of(config, settings)
    _, capture = next(asked(config.capture))
    return choose(model, capture.maps(model), config, strict=False)


def programs(model: nn.Module, *args: Any, **kwargs: Any) -> tuple[Program, ...]:
    """The graphs of `model`, each with its sites and the history of its passes; `mode` says what it is.

    "train", "eval" or ""   a captured graph that runs in that mode, or in both
    "looking"               of a model of modules: one made to be looked at, on a copy without values that cannot run;
                            by symbolic tracing where that is faithful, else by torch.export from `args` and `kwargs`
    "compiled"              what `torch.compile(backend="noble_fx")` made of the model so far

    Raises `CaptureError` where there is none of them, with the reason and the inputs that it takes.
    """
    graphs, without = known_programs(model, Examples(args, kwargs))
    if without is not None and not graphs:
        remedy = "" if args or kwargs else "; with example inputs torch.export can: noble_fx.programs(model, *inputs)"
        raise CaptureError(f"there is no graph of this model to look at: {without.reason}{remedy}")
    return graphs


def known_programs(model: nn.Module, examples: Examples) -> tuple[tuple[Program, ...], Refusal | None]:
    """What `programs` answers, and why there is no graph to look at where there is none."""
    compiled = _compiled_programs(model)
    if running := _running_programs(model):
        return (*running, *compiled), None
    carried = sites(model)
    graph = look(model, carried, examples)
    if isinstance(graph, Refusal):
        return tuple(compiled), graph
    shared = _shared(graph, _sites_by_down(graph))
    return (Program(graph, carried, graph.meta[HISTORY], "looking", shared), *compiled), None


def _running_programs(model: nn.Module) -> list[Program]:
    """The captured graphs inside `model`, which run in the place of a module."""
    running = [(module, capture.graphs(module)) for capture, module in captured(model)]
    by_down = _sites_by_down(model) if running else {}
    return [
        Program(graph, sites(module), graph.meta.get(HISTORY, ()), mode, _shared(graph, by_down))
        for module, graphs in running
        for mode, graph in graphs.items()
    ]


def _compiled_programs(model: nn.Module) -> list[Program]:
    """The graphs that `torch.compile(backend="noble_fx")` made of the model so far."""
    downs = _downs(named_branches(model).values())
    by_down = _sites_by_down(model) if downs else {}
    compiled = []
    for graph in dynamo.compiled_graphs(downs):
        own = dict.fromkeys(by_down[down] for down in graph.downs if down in by_down)
        shared = tuple(tuple(by_down[down].fqn for down in group if down in by_down) for group in graph.groups)
        compiled.append(Program(graph.graph_module, tuple(own), graph.history, "compiled", shared))
    return compiled


def _shared(graph_module: fx.GraphModule, by_down: dict[int, Site]) -> tuple[tuple[str, ...], ...]:
    """The sites of each grouped call in a graph that reads its parameters off its own tree."""
    graph, shared = ModelGraph(graph_module), []
    for node in graph_module.graph.nodes:
        if node.target is LINEAR_GROUP:
            reads = [read for site in Operands.of_node(node).sites for read in parameter_reads(site.down)]
            found = [by_down.get(id(graph.attribute(str(read.target)))) for read in reads]
            shared.append(tuple(dict.fromkeys(site.fqn for site in found if site is not None)))
    return tuple(shared)


def _sites_by_down(model: nn.Module) -> dict[int, Site]:
    """The sites of fused branches by the identity of D, or of what that is made of: a graph shows no more of them."""
    places = [(site, module_at(model, path)) for site in sites(model) for path in branch_paths(site)]
    return {id(down): site for site, held in places for down in _downs([held])}


def _downs(modules: Iterable[Any]) -> list[Any]:
    """D of each fused branch, or the matrices that it is made of."""
    fused = [module for module in modules if isinstance(module, Branch) and module.key]
    return [down for branch in fused if branch.bound is not None for down in branch.bound.downs()]
