"""The adapters of a model: found by name, put beside branches and taken out, and what is frozen while there are any.

a layer with a branch      <layer>.noble.adapters.<name>.down        beside it
a layer without            <layer>.noble.adapters.<name>.down        a linear branch of its own, which is nothing else
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from noble_fx.attach.attach import attach, branch_paths, detach_site, named_branches
from noble_fx.attach.draw import build_branches
from noble_fx.attach.gone import made_choice, note_choice
from noble_fx.branches.adapters import Adapter, Adapters, adapter_name, adapters_of, drawn_adapter
from noble_fx.branches.base import Branch
from noble_fx.branches.lora import LoraBranch
from noble_fx.config import NobleConfig
from noble_fx.errors import ConfigError, nearest, printable
from noble_fx.sites.find import find_maps
from noble_fx.sites.site import Site
from noble_fx.wrappers import own_name

_TAKEN_OUT = "taken out by noble_fx.drop_adapters"
_FROZEN = "_noble_frozen"  # an attribute of the module that was transformed: names of what learned before


def named_adapters(model: nn.Module) -> dict[str, Adapters]:
    """The adapters of each layer that has some, by the name of its branch."""
    found = {name: adapters_of(branch) for name, branch in named_branches(model).items()}
    return {name: adapters for name, adapters in found.items() if adapters is not None}


def adapter_names(model: nn.Module) -> tuple[str, ...]:
    """The names of all adapters of a model, in order."""
    return tuple(dict.fromkeys(name for adapters in named_adapters(model).values() for name in adapters.named()))


def check_known(model: nn.Module, names: Any) -> None:
    """Raises `ConfigError` where a name is none of the model's adapters."""
    known = adapter_names(model)
    if not known:
        raise ConfigError("the model has no adapters; noble_fx.transform(model, branch='lora') puts them in")
    for name in names:
        if name not in known:
            raise ConfigError(
                f"{printable(name)} is no adapter of this model{nearest(str(name), known)}; it has {', '.join(known)}"
            )


def check_none(model: nn.Module, verb: str) -> None:
    """Refuse a model with adapters for a verb that would lose them; raises `ConfigError`."""
    if names := adapter_names(model):
        raise ConfigError(
            f"{verb} knows nothing of adapters, and the model has {', '.join(names)}: merge them "
            "into the weights with noble_fx.merge(model), or take them out with noble_fx.drop_adapters(model)"
        )


# --- in and out ------------------------------------------------------------------------------------------------------


def branch_there(model: nn.Module, site: Site) -> Branch | None:
    """The branch that a layer has, or None; of stacked experts the first."""
    found = dict(model.named_modules()).get(branch_paths(site)[0])
    return found if isinstance(found, Branch) else None


def put_beside(model: nn.Module, site: Site, config: NobleConfig) -> None:
    """Give the layer of a chosen site one more linear map, drawn as `config` says: beside its branch, or as one."""
    branch = branch_there(model, site)
    if branch is None:
        (branch,) = build_branches(model, site, config)
        attach(model, site, [branch])
        return
    place = branch.drawn_as or own_name(site.fqn, model)
    adapter = drawn_adapter(site.in_features, site.out_features, config, site.rank, place)
    _join(branch, adapter_name(config), adapter, "fuse=False" if not branch.config.fuse else site.unfused)


def _join(branch: Branch, name: str, adapter: Adapter, eager: str) -> None:
    some = next(branch.parameters())
    adapters = adapters_of(branch) or Adapters(branch.in_features, branch.out_features)
    adapters.add(name, adapter.to(some.device, branch.dtype) if not some.is_meta else adapter.to("meta", branch.dtype))
    adapters.changed()
    branch.add_module("adapters", adapters.train(branch.training))
    resettle(branch, eager)


def resettle(branch: Branch, eager: str) -> None:
    """Let a branch whose adapters changed find out again how it runs; `eager` is what its place says against that."""
    if isinstance(branch, LoraBranch):
        branch.rank = branch.width
    branch.prepare(eager)


def take_out(model: nn.Module, sites: list[Site], names: Any) -> None:
    """Take the adapters of these names out of the layers of `sites`; a branch that was nothing else goes."""
    places = places_eager(model)
    gone: list[Branch] = []
    for site in sites:
        branch = branch_there(model, site)
        adapters = adapters_of(branch) if branch is not None else None
        if branch is None or adapters is None:
            continue
        for name in set(names) & set(adapters.named()):
            adapters.drop(name)
        if adapters.named():
            resettle(branch, _eager(branch, places.get(site.fqn, "")))
        elif isinstance(branch, LoraBranch):
            gone.append(branch)
            detach_site(model, site)
        else:
            del branch.adapters
            resettle(branch, _eager(branch, places.get(site.fqn, "")))
    _take_note(model, gone)


def _take_note(model: nn.Module, gone: list[Branch]) -> None:
    """Let the choice that the model was transformed by know that these are meant to be gone."""
    chosen = next((branch.choice for branch in gone if branch.choice is not None), None)
    if chosen is None:
        return
    names = {branch.site.fqn for branch in gone}
    out = {"selected": False, "action": "", "rank": 0, "params": 0, "unfused": "", "reason": _TAKEN_OUT}
    listed = [replace(site, **out) if site.fqn in names else site for site in chosen.sites]
    choice = made_choice(model, listed)
    for branch in named_branches(model).values():
        if branch.choice is chosen:
            branch.choice = choice
    note_choice(model, choice)


def places_eager(model: nn.Module) -> dict[str, str]:
    """What speaks against the operator at each linear map, whatever its branch; "" where nothing does."""
    return {each.site.fqn: each.eager.reason if each.eager else "" for each in find_maps(model)}


def _eager(branch: Branch, place: str) -> str:
    return "fuse=False" if not branch.config.fuse else place


# --- what is frozen --------------------------------------------------------------------------------------------------


def switched_off_parameters(model: nn.Module) -> set[int]:
    """The identities of the parameters of adapters that are off, which nothing may move."""
    every = [adapter for adapters in named_adapters(model).values() for adapter in adapters.named().values()]
    return {id(parameter) for adapter in every if not adapter.weighed for parameter in adapter.parameters()}


def freeze(model: nn.Module) -> None:
    """Let nothing but adapters learn, and remember what did; a model whose adapters are there already stays."""
    if _FROZEN in vars(model):
        return
    own = {id(p) for adapters in named_adapters(model).values() for p in adapters.parameters()}
    learning = [(name, p) for name, p in model.named_parameters() if p.requires_grad and id(p) not in own]
    vars(model)[_FROZEN] = tuple(name for name, _ in learning)
    for _, parameter in learning:
        parameter.requires_grad_(False)


def thaw(model: nn.Module) -> None:
    """Let what learned before the first adapter came learn again."""
    for fqn, module in list(model.named_modules()):
        named = dict(model.named_parameters()) if _FROZEN in vars(module) else {}
        for name in vars(module).pop(_FROZEN, ()):
            parameter = named.get(f"{fqn}.{name}" if fqn else name)
            if parameter is not None:
                parameter.requires_grad_(True)


# --- in a file -------------------------------------------------------------------------------------------------------


def described_adapters(model: nn.Module) -> dict[str, dict[str, Any]]:
    """What a file says of the adapters, by the user's own names of their layers: plain JSON values."""
    return {own_name(fqn, model): adapters.described() for fqn, adapters in named_adapters(model).items()}


def told_by_adapters(model: nn.Module) -> bool:
    """Whether settings would not make this model again: linear branches alone, with more adapters than one or fewer."""
    branches = list(named_branches(model).values())
    if not branches or not all(isinstance(branch, LoraBranch) for branch in branches):
        return False
    choice = branches[0].choice
    chosen = sum(site.experts or 1 for site in choice.sites if site.selected) if choice is not None else 0
    named = [adapters_of(branch).named() for branch in branches]  # type: ignore[union-attr]
    return chosen != len(branches) or any(list(each) != [adapter_name(branches[0].config)] for each in named)
