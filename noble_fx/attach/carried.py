"""The sites of a model that carries branches: read off the branches, under the names that they have today.

Each branch holds its own site and the choice that it was a part of. So a model that was wrapped, copied or taken out of
a larger one still says why each map was chosen or left out, and what was changed since shows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from torch import nn

from noble_fx.attach.attach import branch_paths, named_branches
from noble_fx.branches.adapters import adapters_of
from noble_fx.branches.base import Branch
from noble_fx.layers.registry import beside_foreign
from noble_fx.sites.block_maps import at_scope
from noble_fx.sites.layer_maps import LinearMap
from noble_fx.sites.site import Choice, Site

ADDED = "not there when the model was transformed"
REPLACED = "its branch is gone: the layer was replaced after transform"
BY_HAND = "built by hand"
NOT_BY_HAND = "built by hand without a branch"
_BYPASSED = "; without effect: the last backward went past its layer, to its weight alone"


def carried_sites(model: nn.Module, maps: Sequence[LinearMap]) -> tuple[Site, ...]:
    """One site for each linear map, or block, that `model` has today, with why it has a branch or none."""
    scopes = dict.fromkeys(branch.config.scope for branch in named_branches(model).values())
    listed = [linear_map.site for scope in scopes for linear_map in at_scope(model, maps, scope)]
    sites = [*listed, *_inside_captured(model, listed)]
    branches = {site.fqn: _branches_at(model, site) for site in sites}
    chosen = _chosen(branches)
    return tuple(
        _carried(model, site, branches[site.fqn]) if branches[site.fqn] else _left_out(site, chosen) for site in sites
    )


def module_at(model: nn.Module, path: str) -> nn.Module | None:
    """The module at `path`, or None where there is none."""
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def _inside_captured(model: nn.Module, listed: Sequence[Site]) -> list[Site]:
    """Sites with branches that no layer shows: those of bare parameters in a captured model that was wrapped since."""
    covered = {path for site in listed for path in branch_paths(site)}
    sites: dict[str, Site] = {}
    for path, branch in model.named_modules():
        if isinstance(branch, Branch) and path not in covered and branch.site is not None:
            then = next((place for place in branch_paths(branch.site) if path.endswith(place)), None)
            if then is not None:
                site = branch.site.renamed("", path.removesuffix(then))
                sites.setdefault(site.fqn, site)
    return list(sites.values())


def _branches_at(model: nn.Module, site: Site) -> list[Branch]:
    modules = [module_at(model, path) for path in branch_paths(site)]
    return [module for module in modules if isinstance(module, Branch)]


def _chosen(branches: dict[str, list[Branch]]) -> dict[str, Site]:
    """The sites as they were chosen, by today's name; empty where no branch knows of a choice."""
    for fqn, held in branches.items():
        if held and isinstance(held[0].choice, Choice):
            before, after = _renaming(held[0].site.fqn, fqn)
            sites = [site.renamed(before, after) for site in held[0].choice.sites if site.fqn.startswith(before)]
            return {site.fqn: site for site in sites}
    return {}


def _left_out(site: Site, chosen: dict[str, Site]) -> Site:
    """A map without a branch, with the reason, and the role that it had when the model was transformed."""
    if site.fqn not in chosen:
        return replace(site, reason=ADDED if chosen else NOT_BY_HAND)
    then = chosen[site.fqn]
    return replace(site, role=then.role, reason=REPLACED if then.selected else then.reason)


def _renaming(then: str, today: str) -> tuple[str, str]:
    """The prefix that names had when the model was transformed, and the one that they have today."""
    if today.endswith(then):
        return "", today.removesuffix(then)
    return then.removesuffix(today), ""


def _carried(model: nn.Module, site: Site, branches: list[Branch]) -> Site:
    branch = branches[0]
    parameters = [parameter for branch in branches for parameter in branch.parameters()]
    return replace(
        site,
        role=branch.role,
        rank=branch.rank,
        selected=True,
        action=branch.action,
        reason=(branch.site.reason if branch.site is not None else BY_HAND)
        + _adapted(branch)
        + _bypassed(model, site, parameters),
        params=sum(parameter.numel() for parameter in parameters),
        unfused=branch.unfused or _unfused_since(model, site),
    )


def _adapted(branch: Branch) -> str:
    """Which linear maps are there, beside the branch or in its place."""
    adapters = adapters_of(branch)
    return f"; adapters: {adapters.told()}" if adapters is not None else ""


def _unfused_since(model: nn.Module, site: Site) -> str:
    """Why a layer that was one operator is so no more: another library has quantized its weight."""
    layer = None if site.weight or site.is_block else module_at(model, site.fqn)
    refusal = beside_foreign(layer) if layer is not None else None
    return refusal.reason if refusal else ""


def _bypassed(model: nn.Module, site: Site, parameters: Iterable[nn.Parameter]) -> str:
    """What the gradients of the last backward say of a layer whose weight the model reads itself; mostly nothing.

    Nobody can see beforehand that a forward takes `layer.weight` instead of calling the layer (Mamba's dt_proj).
    """
    if site.is_block:
        return ""
    owner, _, name = (site.weight or f"{site.fqn}.weight").rpartition(".")
    weight = getattr(module_at(model, owner), "_parameters", {}).get(name)  # a parametrized weight is no parameter
    if weight is None or weight.grad is None or any(p.grad is not None or not p.requires_grad for p in parameters):
        return ""
    return _BYPASSED
