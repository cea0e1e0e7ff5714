"""The rank of every chosen site: one number, a share of min(K, N), or a parameter budget spread over all of them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache

from torch import nn

from noble_fx.branches.kinds import branch_class
from noble_fx.config import NobleConfig, parse_budget, resolve_rank
from noble_fx.errors import ConfigError
from noble_fx.sites.site import Site


def assign_ranks(model: nn.Module, sites: list[Site], config: NobleConfig, refuse: bool) -> list[Site]:
    """Fill `rank` and `params` of the selected sites. One too narrow for its rank is left out, or refused if `refuse`.

    A rank must be below min(K, N): at min(K, N) the branch costs as much as the layer and bounds nothing.
    """
    count = parameter_counter(config)
    ranks = _fixed_ranks(sites, config)
    budget = parse_budget(config.rank)
    if budget is not None:
        ranks = _spend(budget, model, sites, ranks, count)
    out = []
    for site in sites:
        rank, limit = ranks.get(site.fqn, 0), min(site.in_features, site.out_features)
        if not site.selected:
            out.append(site)
        elif rank < limit:
            out.append(
                replace(site, rank=rank, params=_copies(site) * count(site.in_features, site.out_features, rank))
            )
        elif refuse or _pattern_rank(site, config) is not None:
            raise ConfigError(
                f"rank {rank} does not fit {site.fqn!r} [{site.out_features}, {site.in_features}]: it must be below "
                f"min(K, N) = {limit}; {'lower rank, give this layer its own in rank_pattern, or ' * (limit > 1)}"
                "exclude it"
            )
        else:
            out.append(
                replace(
                    site,
                    selected=False,
                    action="replace" if site.base else "",
                    unfused="",
                    reason=f"rank {rank} is not below min(K, N) = {limit}",
                )
            )
    return out


def _copies(site: Site) -> int:
    return site.experts or 1  # stacked experts have a branch each


def parameter_counter(config: NobleConfig) -> Callable[[int, int, int], int]:
    """A function (K, N, r) -> parameters of one branch, counted on the meta device."""
    kind = branch_class(config)

    @cache
    def count(in_features: int, out_features: int, rank: int) -> int:
        return kind.parameter_count(in_features, out_features, rank, config)

    return count


def _pattern_rank(site: Site, config: NobleConfig) -> int | None:
    for pattern, rank in (config.rank_pattern or {}).items():
        if any(re.search(pattern, name) for name in (site.fqn, *site.aliases)):
            return resolve_rank(rank, site.in_features, site.out_features)
    return None


def _fixed_ranks(sites: list[Site], config: NobleConfig) -> dict[str, int]:
    """Ranks that do not depend on a budget: those of rank_pattern, and of a number or share."""
    ranks = {}
    for site in sites:
        rank = _pattern_rank(site, config) if site.selected else None
        if rank is None and site.selected and parse_budget(config.rank) is None:
            rank = resolve_rank(config.rank, site.in_features, site.out_features)
        if rank is not None:
            ranks[site.fqn] = rank
    return ranks


def _spend(
    budget: float,
    model: nn.Module,
    sites: list[Site],
    fixed: dict[str, int],
    count: Callable[[int, int, int], int],
) -> dict[str, int]:
    """The largest common rank that keeps all branches within `budget` × the model's parameters.

    A narrow layer takes at most min(K, N) / 2, so one small projection does not hold back the rest.
    """
    allowed = budget * sum(p.numel() for p in model.parameters())
    open_sites = [s for s in sites if s.selected and s.fqn not in fixed and min(s.in_features, s.out_features) > 1]
    by_name = {site.fqn: site for site in sites}
    spent = sum(
        _copies(by_name[n]) * count(by_name[n].in_features, by_name[n].out_features, r) for n, r in fixed.items()
    )

    def ranks(common: int) -> dict[str, int]:
        return {s.fqn: max(1, min(common, min(s.in_features, s.out_features) // 2)) for s in open_sites}

    def cost(common: int) -> int:
        rank_of = ranks(common)
        return spent + sum(_copies(s) * count(s.in_features, s.out_features, rank_of[s.fqn]) for s in open_sites)

    if open_sites and cost(1) > allowed:
        raise ConfigError(
            f"rank={budget:.4g} of the parameters is {allowed:,.0f}, too little for rank 1 at {len(open_sites)} layers "
            f"({cost(1):,} parameters); raise the budget or select fewer layers"
        )
    low, high = 1, max((min(s.in_features, s.out_features) // 2 for s in open_sites), default=1)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if cost(middle) <= allowed else (low, middle - 1)
    rest = {s.fqn: 1 for s in sites if s.selected}  # a layer of width 1: left out by the bound on every rank
    return {**rest, **ranks(low), **fixed}
