"""Looking at a model: its sites, its programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from noble_fx.attach.attach import branch_paths, named_branches
from noble_fx.attach.carried import carried_sites, module_at
from noble_fx.captures import dynamo
from noble_fx.captures.base import HISTORY, Examples, check_model
from noble_fx.captures.looking import look
from noble_fx.captures.table import asked, capture_of, captured
from noble_fx.config import NobleConfig
from noble_fx.errors import CaptureError, Refusal
from noble_fx.passes.history import Program
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
    return (Program(graph, carried, graph.meta[HISTORY], "looking"), *compiled), None


def _running_programs(model: nn.Module) -> list[Program]:
    """The captured graphs inside `model`, which run in the place of a module."""
    return [
        Program(graph, sites(module), graph.meta.get(HISTORY, ()), mode)
        for capture, module in captured(model)
        for mode, graph in capture.graphs(module).items()
    ]


def _compiled_programs(model: nn.Module) -> list[Program]:
    """The graphs that `torch.compile(backend="noble_fx")` made of the model so far."""
    branches: list[Any] = [branch for branch in named_branches(model).values() if branch.key]
    names = {id(branch.down): branch for branch in branches}
    carried = sites(model) if branches else ()
    paths = {id(module_at(model, path)): site for site in carried for path in branch_paths(site)}
    compiled = []
    for graph in dynamo.compiled_graphs([branch.down for branch in branches]):
        own = dict.fromkeys(paths[id(names[down])] for down in graph.downs if id(names.get(down)) in paths)
        compiled.append(Program(graph.graph_module, tuple(own), graph.history, "compiled"))
    return compiled
