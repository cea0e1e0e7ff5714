"""Which of a model's linear maps get a branch: `select`, `exclude` and the ranks."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from torch import nn

from noble_fx.branches.kinds import branch_class
from noble_fx.config import GROUPS, NobleConfig
from noble_fx.errors import ConfigError, nearest
from noble_fx.sites.block_maps import at_scope
from noble_fx.sites.find import LinearMap
from noble_fx.sites.forms import assign_forms
from noble_fx.sites.ranks import assign_ranks
from noble_fx.sites.site import BLOCK, Site

_STAYS = ", which {} and stays as it is; transform with init_base=False"


def choose(
    model: nn.Module,
    maps: list[LinearMap],
    config: NobleConfig,
    strict: bool = True,
    taken: Mapping[str, str] = MappingProxyType({}),
) -> tuple[Site, ...]:
    """One `Site` per map (or block: scope="block") with selection, rank and reason.

    Raises `ConfigError` where the user must decide otherwise.

    Without `strict` an unsuitable layer, a rank too large or an empty choice is a reason in the answer, not an error.
    `taken` gives, by name, layers that are out of the question, with the reason.
    """
    maps = at_scope(model, maps, config.scope)
    _check_pattern(maps, config)
    has_blocks = any(entry.in_block and not entry.obstacle and not entry.against for entry in maps)
    wanted, excluded = _wanted(maps, config, has_blocks), _excluded(maps, config)
    action = branch_class(config).action
    excluded = [taken.get(entry.site.fqn, reason) for entry, reason in zip(maps, excluded, strict=True)]
    sites = [_decide(*entry, config, strict, action, has_blocks) for entry in zip(maps, wanted, excluded, strict=True)]
    named = not is_group(config.select)
    sites = assign_ranks(model, sites, config, refuse=strict and named)
    sites = assign_forms(model, maps, sites, config, strict, named)
    if strict and not any(site.selected for site in sites):
        raise ConfigError(_nothing_selected(sites, config)).leading_nowhere()
    return tuple(sites)


def is_group(select: object) -> bool:
    """True for "auto", "all", "attention" and "ffn", which pass over what does not suit instead of refusing."""
    return isinstance(select, str) and select in GROUPS


def _decide(
    linear_map: LinearMap, wanted: str, excluded: str, config: NobleConfig, strict: bool, action: str, has_blocks: bool
) -> Site:
    site, group = linear_map.site, is_group(config.select)
    named = not isinstance(config.select, str) and not callable(config.select)
    if linear_map.obstacle:
        if named and wanted and strict:
            raise ConfigError(f"select names {site.fqn!r}, which cannot carry a branch: {linear_map.obstacle}")
        both = [refusal.reason for refusal in (linear_map.against, linear_map.obstacle) if refusal]
        return replace(site, reason="; and ".join(both))
    if excluded:
        return replace(site, reason=excluded)
    if linear_map.against and (group or not wanted):
        return replace(site, reason=linear_map.against.reason)
    if not wanted:
        return replace(site, reason=_why_not(linear_map, config, has_blocks))
    if linear_map.unsuitable and not strict:
        return replace(site, reason=linear_map.unsuitable.reason)
    if linear_map.unsuitable:
        raise ConfigError(
            f"the weight of {site.fqn!r} is {linear_map.unsuitable}; a branch is trained together with its layer: "
            f"transform the model before quantizing it, or leave the layer out with exclude={re.escape(site.fqn)!r}"
        )
    if linear_map.frozen and config.init_base:
        stays = _STAYS.format(f"is {site.base}" if site.base else "is quantized")
        if strict:
            raise ConfigError(f"init_base=True would draw the weight of {site.fqn!r}{stays}")
        return replace(site, reason=f"init_base=True would draw its weight{stays}")
    eager = linear_map.eager.reason if linear_map.eager else ""
    return replace(site, selected=True, reason=wanted + linear_map.note, action=action, unfused=eager)


def _why_not(linear_map: LinearMap, config: NobleConfig, has_blocks: bool) -> str:
    if config.select != "auto":
        return "not matched by select"
    if linear_map.passed_over and (linear_map.in_block or not has_blocks):
        return f"{linear_map.passed_over}; select='all' or its name takes it"
    return "outside the repeated blocks"


def _nothing_selected(sites: list[Site], config: NobleConfig) -> str:
    if not sites and config.scope == BLOCK:
        return "the model has no repeated blocks; scope='linear' (the default) gives its linear layers a branch each"
    if not sites:
        return (
            "the model has no linear layer, so there is nothing to add a branch to; "
            "a class of your own becomes one with noble_fx.register_layer"
        )
    if isinstance(config.select, str) and not is_group(config.select):
        known = [site.fqn for site in sites]
        if not any(re.search(config.select, name) for name in known):
            near = nearest(config.select, known)
            return f"select={config.select!r} matches no {_noun(config)}{near}; see noble_fx.sites"
    reasons = Counter(site.reason for site in sites).most_common(4)
    listed = "; ".join(f"{count} × {reason}" for reason, count in reasons)
    return f"select={config.select!r} leaves no {'block' if config.scope == BLOCK else 'layer'} to augment: {listed}"


def _wanted(maps: list[LinearMap], config: NobleConfig, has_blocks: bool) -> list[str]:
    """Per map: why `select` takes it, or "" where it does not; a list entry that is no map is an error."""
    select = config.select
    if isinstance(select, str) and is_group(select):
        return [_group_reason(select, linear_map, has_blocks) for linear_map in maps]
    if isinstance(select, str):
        return [f"matches select={select!r}" if matches else "" for matches in _matches(maps, select)]
    if callable(select):
        return ["chosen by select(site)" if select(linear_map.site) else "" for linear_map in maps]
    return _by_name(maps, list(select), "select", _noun(config))


def _group_reason(group: str, linear_map: LinearMap, has_blocks: bool) -> str:
    if group == "auto" and linear_map.passed_over:
        return ""
    if linear_map.site.is_block:
        return "a repeated block"
    if group == "auto":
        return ("in a repeated block" if linear_map.in_block else "") if has_blocks else "no repeated blocks: all"
    if group == "all":
        return "select='all'"
    return f"role {linear_map.site.role}" if linear_map.site.role.startswith(group) else ""


def _noun(config: NobleConfig) -> str:
    return "repeated block" if config.scope == BLOCK else "linear layer"


def _names(linear_map: LinearMap) -> tuple[str, ...]:
    return (linear_map.site.fqn, *linear_map.site.aliases)


def _by_name(maps: list[LinearMap], wanted: list[str], setting: str, noun: str) -> list[str]:
    known = {name for linear_map in maps for name in _names(linear_map)}
    for name in wanted:
        if name not in known:
            raise ConfigError(
                f"{setting} names {name!r}, which is no {noun} of this model{nearest(name, sorted(known))}; "
                "noble_fx.sites(model) lists them all, and a plain string is taken as a regex"
            )
    return [f"named in {setting}" if set(_names(linear_map)) & set(wanted) else "" for linear_map in maps]


def _excluded(maps: list[LinearMap], config: NobleConfig) -> list[str]:
    exclude = config.exclude
    if exclude is None:
        return [""] * len(maps)
    if not isinstance(exclude, str):
        return _by_name(maps, list(exclude), "exclude", _noun(config))
    matched = _matches(maps, exclude)
    if not any(matched):
        names = [linear_map.site.fqn for linear_map in maps]
        raise ConfigError(
            f"exclude={exclude!r} matches no {_noun(config)}{nearest(exclude, names)}; drop it or correct it"
        )
    return [f"matches exclude={exclude!r}" if matches else "" for matches in matched]


def _matches(maps: list[LinearMap], pattern: str) -> list[bool]:
    """Per map: whether the pattern is found in a name of its."""
    return [any(re.search(pattern, name) for name in _names(linear_map)) for linear_map in maps]


def _check_pattern(maps: list[LinearMap], config: NobleConfig) -> None:
    for pattern in config.rank_pattern or {}:
        if not any(_matches(maps, pattern)):
            names = [linear_map.site.fqn for linear_map in maps]
            raise ConfigError(f"rank_pattern {pattern!r} matches no {_noun(config)}{nearest(pattern, names)}")
