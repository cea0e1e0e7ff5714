"""`noble_fx.add_branches`, `remove_branches`: which layers have branches, changed while a model is being trained."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from noble_fx.attach.attach import attach, branch_paths, detach_site, named_branches
from noble_fx.attach.draw import base_tensors, build_branches
from noble_fx.attach.gone import sites_gone
from noble_fx.attach.restore import restored_on_error
from noble_fx.attach.settled import settle
from noble_fx.attach.unwrapped import check_unwrapped
from noble_fx.branches.base import Branch
from noble_fx.captures.flow_roles import maps_with_roles
from noble_fx.config import NobleConfig, RankSpec, parse_budget, plain_rank
from noble_fx.errors import ConfigError, check_flag, nearest
from noble_fx.sites.choose import choose, is_group
from noble_fx.sites.find import LinearMap
from noble_fx.sites.site import Site
from noble_fx.torch_versions import forget_compiled
from noble_fx.training.changing.optimizers import apply_changes, as_optimizers, check_held, put_back_on_error
from noble_fx.training.changing.parameter_changes import Change, added, gone
from noble_fx.training.changing.running import Running, running
from noble_fx.transform import keep_from_fast_path, require_kernels
from noble_fx.wrappers import own_name

_TAKEN_OUT = "taken out by noble_fx.remove_branches"


def add_branches(
    model: nn.Module, select: Any, rank: RankSpec | None = None, optimizer: Any = None, zero: bool = True
) -> tuple[Site, ...]:
    """Give layers that have none a branch, with the settings of those that are there; returns their sites.

    `select` is what it is in `transform`; `rank` is that of the others where it is not given. With `zero` U starts at
    zero, so what the model computes stays as it is; without, it is drawn. `optimizer` (or a list of them) takes the new
    parameters into the groups of their kind. Raises `ConfigError` or `CaptureError`, each with the remedy; model and
    optimizer are then as they were.
    """
    check_flag("zero", zero, ConfigError)
    optimizers = as_optimizers(optimizer)
    if not named_branches(model):
        raise ConfigError("no branch is left whose settings a new one could have; call noble_fx.transform")
    found = running(model)
    config = _settings(found)
    coming = _coming(found, config, select, rank)
    check_unwrapped(found.model, "change", [site.weight or site.fqn for site in coming])
    built = {site.fqn: build_branches(found.model, site, config) for site in coming}
    if zero:
        _silence(built)
    if config.fuse == "require":
        require_kernels(built)
    changes = _additions(found, coming, built) if optimizers else []
    check_held(optimizers, changes)
    forget_compiled()
    with restored_on_error(found.model), put_back_on_error(optimizers):
        for site in coming:
            attach(found.model, site, built[site.fqn])
            _as_after_backward(found.model, site, built[site.fqn])
        keep_from_fast_path(found.model)
        chosen = {site.fqn: replace(site, unfused=built[site.fqn][0].unfused) for site in coming}
        settle(found.model, [chosen.get(site.fqn, site) for site in found.sites])
        apply_changes(optimizers, found.model, changes)
    return tuple(chosen.values())


def _settings(found: Running) -> NobleConfig:
    """The settings of the branches that are there; raises `ConfigError` where these are of several kinds."""
    own = ("rank", "rank_pattern", "select", "exclude")
    configs = [branch.config for site in found.selected for branch in found.branches(site)]
    plain = {config.replace(rank=1, rank_pattern=None, select="auto", exclude=None).text() for config in configs}
    if len(plain) > 1:
        raise ConfigError(
            "the model's branches were made with several settings, so nobody knows which a new one should have; "
            f"settings other than {', '.join(own)} must be the same for all"
        )
    return configs[0]


def _coming(found: Running, config: NobleConfig, select: Any, rank: Any) -> list[Site]:
    carried = [site.fqn for site in found.selected]
    if not isinstance(select, str) and not callable(select):
        listed = list(select) if isinstance(select, list | tuple | set | frozenset) else []
        names = {name for site in found.selected for name in (site.fqn, *site.aliases)}
        if has := next((name for name in listed if name in names), None):
            raise ConfigError(
                f"select names {has!r}, which carries a branch already; noble_fx.set_rank changes its rank"
            )
    rank = config.rank if rank is None else plain_rank(rank)
    if parse_budget(rank) is not None:
        raise ConfigError(f"rank={rank!r} is a budget for all branches of a model; give rank a number for the new ones")
    asked = config.without_base().replace(select=select, rank=rank, rank_pattern=None, exclude=None)
    chosen = choose(found.model, _maps(found), asked, taken=dict.fromkeys(carried, "carries a branch already"))
    listed_sites = {site.fqn for site in found.sites}
    return [site for site in chosen if site.selected and site.fqn in listed_sites]


def _maps(found: Running) -> list[LinearMap]:
    """The linear maps, with the roles that they had when the model was transformed: branches may hide where x goes."""
    roles = {site.fqn: site.role for site in found.sites}
    maps = maps_with_roles(found.model)
    return [replace(each, site=replace(each.site, role=roles.get(each.site.fqn, each.site.role))) for each in maps]


def _silence(built: dict[str, list[Branch]]) -> None:
    for fqn, branches in built.items():
        for branch in branches:
            if refusal := branch.silence():
                raise ConfigError(f"the branch for {fqn!r} cannot start at zero: {refusal.reason}; pass zero=False")


def _additions(found: Running, coming: list[Site], built: dict[str, list[Branch]]) -> list[Change]:
    others = [branch for site in found.selected for branch in found.branches(site)]
    changes: list[Change] = []
    for site in coming:
        for path, branch in zip(branch_paths(site), built[site.fqn], strict=True):
            changes += (own := added(own_name(path, found.model), branch, others))
            if len(own) < len(list(branch.parameters())):
                raise ConfigError(
                    f"the branch for {site.fqn!r} has parameters of a role that no other branch has, so no group of "
                    "the optimizer is theirs; call this without it, and build one from noble_fx.param_groups"
                )
    return changes


def _as_after_backward(model: nn.Module, site: Site, branches: list[Branch]) -> None:
    """Gradients of zero where the layer has one: the last backward did not pass the branch by, it was not there."""
    if base_tensors(model, site)[0].grad is not None:
        for parameter in (p for branch in branches for p in branch.parameters()):
            parameter.grad = torch.zeros_like(parameter)


def remove_branches(model: nn.Module, select: Any, optimizer: Any = None) -> tuple[Site, ...]:
    """Take the branches of some layers out, in place, and out of `optimizer`; returns their sites.

    `select`: a regex on the layers' names, a list of these, "attention", "ffn", "all", or a function of a `Site`. What
    the branches added is gone: to lose less of it, let `set_rank` shrink them. A list of layers that another tool has
    replaced, and their branches with them, is taken note of. Raises `ConfigError` or `CaptureError`, each with the
    remedy; model and optimizer are then as they were.
    """
    optimizers = as_optimizers(optimizer)
    found = running(model)
    going = _gone_already(found, select) or _going(found, select)
    changes = [
        change
        for site in going
        if site.selected
        for path, branch in zip(branch_paths(site), found.branches(site), strict=True)
        for change in gone(own_name(path, found.model), branch)
    ]
    check_held(optimizers, changes)
    forget_compiled()
    with restored_on_error(found.model), put_back_on_error(optimizers):
        for site in going:
            if site.selected:
                detach_site(found.model, site)
        keep_from_fast_path(found.model)
        out = {site.fqn for site in going}
        settle(found.model, [_without(site) if site.fqn in out else site for site in found.sites])
        apply_changes(optimizers, found.model, changes)
    return tuple(going)


def _gone_already(found: Running, select: Any) -> list[Site]:
    """Sites of a list of names whose branches another tool has taken along, where all of them are such."""
    if not isinstance(select, list | tuple | set | frozenset):
        return []
    gone = sites_gone(found.model)
    named = [site for site in found.sites if own_name(site.fqn, found.model) in gone and site.fqn in select]
    return named if len(named) == len(select) else []


def _without(site: Site) -> Site:
    return replace(site, rank=0, params=0, selected=False, action="", unfused="", reason=_TAKEN_OUT)


def _going(found: Running, select: Any) -> list[Site]:
    """The sites with a branch that `select` takes, by the same words as `transform`; raises `ConfigError`."""
    NobleConfig(select=select)  # refuses what is no selection
    names = {site.fqn: (site.fqn, *site.aliases) for site in found.selected}
    if callable(select):
        going = [site for site in found.selected if select(site)]
    elif is_group(select):
        going = [site for site in found.selected if select in ("auto", "all") or site.role.startswith(select)]
    elif isinstance(select, str):
        going = [site for site in found.selected if site.matches(select)]
    else:
        for name in select:
            if not any(name in own for own in names.values()):
                raise ConfigError(f"select names {name!r}, which carries no branch{nearest(name, names)}")
        going = [site for site in found.selected if set(names[site.fqn]) & set(select)]
    if not going:
        near = nearest(select, names) if isinstance(select, str) and not is_group(select) else ""
        raise ConfigError(f"select={select!r} takes no layer with a branch{near}; see noble_fx.sites")
    return going
