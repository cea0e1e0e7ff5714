"""At which chosen sites W gets another form (`base=…`), and at which rank; or why it stays as it is."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from typing import Any

from torch import nn

from noble_fx.bases.guided import Guided
from noble_fx.bases.kinds import base_class, check_base
from noble_fx.config import NobleConfig, resolve_rank
from noble_fx.distributed import is_distributed
from noble_fx.errors import ConfigError
from noble_fx.layers.registry import projections
from noble_fx.layers.restructure import why_dense, why_eager_with
from noble_fx.sites.layer_maps import LinearMap, form_of
from noble_fx.sites.site import Site

_STAYS = "; W stays as it is: {reason}"
_SPREAD = "its weight is spread over ranks already; transform the plain model, then shard it"


def assign_forms(
    model: nn.Module, maps: list[LinearMap], sites: list[Site], config: NobleConfig, strict: bool, named: bool
) -> list[Site]:
    """Fill `base…` of the selected sites whose W gets another form, and the reason at the others.

    `named`: the user chose these very layers, so one whose W must stay is a `ConfigError` where `strict`; so is a
    choice in which every W stays, and a weight that is spread over ranks.
    """
    if config.base is None:
        return sites
    check_base(config)
    modules = {entry.site.fqn: entry.module for entry in maps}
    owners = Counter(id(p) for module in model.modules() for p in module._parameters.values() if p is not None)
    out, stays = [], []
    for site in sites:
        if not site.selected:
            out.append(site)
            continue
        planned = _planned(model, site, modules.get(site.fqn), owners, config)
        if isinstance(planned, Site):
            out.append(planned)
            continue
        if strict and (named or planned == _SPREAD):
            raise ConfigError(
                f"W of {site.fqn!r} cannot be {config.base}: {planned}; leave the layer out with "
                f"exclude={re.escape(site.fqn)!r}, or choose by a group such as select='auto', where it keeps its W"
            )
        stays.append(planned)
        out.append(replace(site, reason=site.reason + _STAYS.format(reason=planned)))
    if strict and stays and not any(site.selected and site.base == config.base for site in out):
        listed = "; ".join(f"{count} × {reason}" for reason, count in Counter(stays).most_common(4))
        raise ConfigError(f"base={config.base!r} fits no layer that was chosen: {listed}")
    return out


def _planned(
    model: nn.Module, site: Site, layer: nn.Module | None, owners: Counter[int], config: NobleConfig
) -> Site | str:
    """The site with its form, or why W stays."""
    if reason := _why_stays(model, site, layer, owners):
        return reason
    kind = base_class(config.base)
    K, N = site.in_features, site.out_features
    settings = kind.completed(config.base_settings or {})
    rank = _rank(config.base_rank, K, N, kind.unit(settings))
    if wrong := kind.misfit(K, N, rank, settings):
        return wrong
    base = kind.on_meta(K, N, rank, **settings)
    count = sum(p.numel() for p in base.parameters())
    if count >= K * N and not kind.whole:
        return f"at base_rank {rank} it would have {count:,} parameters in the place of {K * N:,}, which saves nothing"
    base = Guided.on_top(base, config.guide) if config.guide else base
    eager = why_eager_with(layer, base)
    return replace(site, **form_of(base), unfused=eager.reason if eager else "")


def _rank(asked: int | float | None, in_features: int, out_features: int, unit: int) -> int:
    """The rank at one site: a number as it is, a share rounded to a multiple of `unit`, all where none is asked for."""
    if isinstance(asked, float):
        return max(unit, round(asked * min(in_features, out_features) / unit) * unit)
    return min(in_features, out_features) if asked is None else resolve_rank(asked, in_features, out_features)


def _why_stays(model: nn.Module, site: Site, layer: nn.Module | None, owners: Counter[int]) -> str:
    if site.is_block:
        return "a whole block has none"
    if site.weight or layer is None:
        return "it is a parameter outside of any layer" if not site.experts else "it is of stacked experts"
    if refusal := why_dense(layer):
        return refusal.reason
    around = model.get_submodule(site.fqn.rpartition(".")[0])
    if projections(around):
        return f"the {type(around).__name__} around it reads its weight"
    weight: Any = layer.weight
    if is_distributed(weight):
        return _SPREAD
    return "it is tied to another module's" if owners[id(weight)] > 1 else ""
