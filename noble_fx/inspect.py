"""Looking at a model: its sites, its programs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import fx, nn

from noble_fx.attach.attach import branch_paths, named_branches
from noble_fx.branches.base import Branch
from noble_fx.captures import dynamo
from noble_fx.captures.base import Declined, check_model
from noble_fx.captures.exported_model import ExportedModel
from noble_fx.captures.fx import CapturedModel, trace
from noble_fx.config import NobleConfig
from noble_fx.errors import ConfigError
from noble_fx.passes.history import Program
from noble_fx.sites import roles_from_graph
from noble_fx.sites.choose import choose
from noble_fx.sites.find import LinearMap, find_maps
from noble_fx.sites.from_file import read_sites
from noble_fx.sites.site import Site

HISTORY = "noble_fx"  # where a CapturedModel keeps the history of its passes, in `meta`


def _try_trace(model: nn.Module) -> tuple[fx.Graph | None, str]:
    try:
        return trace(model), ""
    except Declined as reason:
        return None, str(reason)


def sites(model: nn.Module | str | Path, config: NobleConfig | None = None, **settings: Any) -> tuple[Site, ...]:
    """Every linear map found in `model`, chosen or not, with the reason; never raises for an unsuitable one.

    On a transformed model, what it carries; on a plain one, what `transform` with these settings would choose; of the
    path of an exported ONNX file, what the file says it carries (`ExportError` where it is not one).
    """
    if isinstance(model, str | Path):
        return read_sites(model)
    branches = named_branches(model)
    if not branches:
        check_model(model)
        graph, _ = _try_trace(model)
        maps = _maps(model, graph)
        return choose(model, maps, (config or NobleConfig()).replace(**settings), strict=False)
    maps = _maps(model)
    try:
        found = choose(model, maps, next(iter(branches.values())).config, strict=False)
    except ConfigError:  # the config names layers by their place in a larger model, of which this is a part
        found = tuple(linear_map.site for linear_map in maps)
    return tuple(_carried(model, site) for site in found)


def _maps(model: nn.Module, graph: fx.Graph | None = None) -> list[LinearMap]:
    exported = list(model.noble_graphs.base.values()) if isinstance(model, ExportedModel) else []
    return find_maps(model, roles_from_graph.roles_from_graph(model, graph) if graph else None, exported)


def _carried(model: nn.Module, site: Site) -> Site:
    """`site` as it really is, whatever the model's config would choose today."""
    branches = [_module_at(model, path) for path in branch_paths(site)]
    branch = branches[0]
    if not isinstance(branch, Branch):
        return replace(site, selected=False, rank=0, params=0, reason=site.reason if not site.selected else "")
    parameters = [p for one in branches if one is not None for p in one.parameters()]
    return replace(
        site,
        role=branch.role,
        rank=branch.rank,
        selected=True,
        reason=(branch.site.reason if branch.site else "")
        + _bypassed(model, site.weight or f"{site.fqn}.weight", parameters),
        params=sum(p.numel() for p in parameters),
        unfused=branch.unfused,
    )


def _bypassed(model: nn.Module, weight: str, branch: list[nn.Parameter]) -> str:
    """What the gradients of the last backward say of a layer whose weight the model reads itself; mostly nothing.

    Nobody can see beforehand that a forward takes `layer.weight` instead of calling the layer (Mamba's dt_proj).
    """
    owner, _, name = weight.rpartition(".")
    held = getattr(_module_at(model, owner), "_parameters", {}).get(name)  # a parametrized weight is no parameter
    if held is None or held.grad is None or any(p.grad is not None or not p.requires_grad for p in branch):
        return ""
    return "; without effect: the last backward went past its layer, to its weight alone"


def _module_at(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def programs(model: nn.Module) -> tuple[Program, ...]:
    """The captured graphs inside `model` with the history of their passes; none where its own forward runs."""
    out: list[Program] = []
    for module in model.modules():
        if isinstance(module, CapturedModel) and HISTORY in module.meta:
            out.append(Program(module, sites(module), module.meta[HISTORY]))
        elif isinstance(module, ExportedModel):
            found, history = sites(module), module.noble_graphs.history
            out += [Program(graph, found, history.get(mode, ()), mode) for mode, graph in module.noble_modules.items()]
    return tuple(out + _compiled_programs(model))


def _compiled_programs(model: nn.Module) -> list[Program]:
    """The graphs that `torch.compile(backend="noble_fx")` made of the model so far."""
    branches: list[Any] = [branch for branch in named_branches(model).values() if branch.key]
    names = {id(branch.down): branch for branch in branches}
    found = sites(model) if branches else ()
    paths = {id(_module_at(model, path)): site for site in found for path in branch_paths(site)}
    out = []
    for graph in dynamo.compiled_graphs([branch.down for branch in branches]):
        own = dict.fromkeys(paths[id(names[down])] for down in graph.downs if id(names.get(down)) in paths)
        out.append(Program(graph.graph_module, tuple(own), graph.history, "compiled"))
    return out
