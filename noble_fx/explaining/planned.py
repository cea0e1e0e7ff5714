"""Sites whose branches are not at hand: what `transform` would choose of a plain model, and what a file says it has."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

from noble_fx.branches.base import Branch
from noble_fx.branches.kinds import branch_class
from noble_fx.config import NobleConfig
from noble_fx.explaining.account import LEFT_OUT, SiteAccount
from noble_fx.explaining.cost import base_flops, branch_flops
from noble_fx.sites.site import Site


def planned_entries(
    sites: Iterable[Site],
    state: str,
    config: NobleConfig | None,
    act: str = "",
    layer_of: Callable[[Site], Any] = lambda site: None,
) -> tuple[SiteAccount, ...]:
    """One entry a site, with branches as the settings build them; where they cannot, σ is `act`, FLOPs are unknown."""
    build = functools.cache(functools.partial(_built, config))

    def entry(site: Site) -> SiteAccount:
        base = base_flops(site, layer_of(site))
        if not site.selected:
            return SiteAccount(site, LEFT_OUT, base_flops=base)
        branch = build(site.in_features, site.out_features, site.rank)
        flops = None if branch is None else branch_flops(branch)
        return SiteAccount(site, state, act if branch is None else branch.label, base, flops)

    return tuple(map(entry, sites))


def _built(config: NobleConfig | None, in_features: int, out_features: int, rank: int) -> Branch | None:
    if config is None:
        return None
    try:
        return branch_class(config).on_meta(in_features, out_features, rank, config)
    except Exception:  # a class or a σ that this process does not know, or sizes that no tensor has
        return None
