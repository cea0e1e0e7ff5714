"""A graph of a model of modules, made to be looked at: nothing runs it, and nothing of the model changes.

the model --copied without values--> base model --traced--> graph --branches back, passes "train"--> program
"""

from __future__ import annotations

from typing import Any

from torch import fx, nn
from torch.utils import _pytree as pytree

from noble_fx.captures.base import HISTORY, Declined, Examples
from noble_fx.captures.block_places import places_shown, plain_stacks
from noble_fx.captures.export import export_once
from noble_fx.captures.exported_model import GraphOverTree
from noble_fx.captures.fx import unreachable
from noble_fx.captures.meta_copy import meta_copy, to_meta, without_branches
from noble_fx.captures.tracing import check_traceable, trace_copy
from noble_fx.errors import CaptureError, Refusal
from noble_fx.passes.pipeline import PIPELINES
from noble_fx.passes.rule import run_passes
from noble_fx.sites.site import Site


def look(model: nn.Module, sites: tuple[Site, ...], examples: Examples) -> fx.GraphModule | Refusal:
    """The graph by symbolic tracing where that is faithful, else by torch.export from `examples`, or why neither is."""
    try:
        return _traced(model, sites)
    except Declined as reason:
        if not examples:
            return Refusal(str(reason))
    try:
        return _exported(model, sites, examples)
    except (Declined, CaptureError) as reason:
        return Refusal(str(reason))


def _traced(model: nn.Module, sites: tuple[Site, ...]) -> fx.GraphModule:
    check_traceable(model)
    copied = meta_copy(model)
    with without_branches(copied), places_shown(copied, _blocks(sites)):
        graph = plain_stacks(trace_copy(copied))
        hidden = unreachable(graph, copied, sites)
    if hidden is not None:
        raise Declined(hidden.reason)
    return _rewritten(copied, graph, {})


def _blocks(sites: tuple[Site, ...]) -> dict[str, int]:
    return {site.fqn: site.in_features for site in sites if site.selected and site.is_block}


def _exported(model: nn.Module, sites: tuple[Site, ...], examples: Examples) -> fx.GraphModule:
    copied = meta_copy(model)
    args, kwargs = pytree.tree_map(to_meta, (examples.args, examples.kwargs))
    with without_branches(copied), places_shown(copied, _blocks(sites)):
        graph, constants = export_once(copied, Examples(args, kwargs, examples.dynamic_shapes))
    return _rewritten(copied, graph, constants)


def _rewritten(copied: nn.Module, graph: fx.Graph, constants: dict[str, Any]) -> fx.GraphModule:
    program = GraphOverTree(copied, graph, constants, type(copied).__name__)
    program.meta[HISTORY] = run_passes(program, PIPELINES["train"], listed=True)
    return program
