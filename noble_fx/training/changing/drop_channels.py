"""The lowest rank of each branch whose result is near enough to what it was: what `fold(drop=…)` takes out first."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from noble_fx.branches.base import Branch
from noble_fx.errors import ConfigError, Refusal, shown
from noble_fx.sites.site import Site
from noble_fx.training.changing.collect import collected
from noble_fx.training.changing.running import running
from noble_fx.training.changing.set_rank import RankChanges, check_finite, other_rank, resized_branch, set_rank

_NOTHING = 1e-6  # of the result's norm: what float32 leaves of a channel that nobody hears


def check_drop(drop: float | None, inputs: Any) -> None:
    """Refuse a share that is none, and inputs without one; raises `ConfigError`."""
    if drop is None and inputs is not None:
        raise ConfigError("inputs are what drop=… measures on; say drop=0.01 for a result that is off by 1 % at most")
    if drop is not None and (isinstance(drop, bool) or not isinstance(drop, int | float) or not 0 <= drop < 1):
        raise ConfigError(f"drop={shown(drop)} must be None or a share of a branch's result, 0 ≤ drop < 1")


def drop_channels(model: nn.Module, drop: float, inputs: Any = None) -> RankChanges:
    """Lower ranks in place as far as `drop` allows; returns what was done. Raises what `set_rank` raises.

    A branch that cannot have another rank (its kind or its σ does not say how) keeps the one that it has.
    """
    found = running(model)
    movable = [site for site in found.selected if not any(map(_stays, found.branches(site)))]
    branches = [branch for site in movable for branch in found.branches(site)]
    check_finite(found, branches)
    rows = collected(found.model, branches, inputs) if inputs is not None else {}
    wanted = {site.fqn: _lowest(site, found.branches(site), max(drop, _NOTHING), rows) for site in movable}
    lower = {f"^{re.escape(site.fqn)}$": wanted[site.fqn] for site in movable if wanted[site.fqn] < site.rank}
    return set_rank(found.model, lower, inputs=inputs) if lower else RankChanges()


def _stays(branch: Branch) -> bool:
    return branch.rank < 2 or isinstance(other_rank(branch, branch.rank - 1, None), Refusal)


def _lowest(site: Site, branches: list[Branch], drop: float, rows: Mapping[int, Tensor]) -> int:
    """By halving: fewer channels are never nearer, but for what rounding makes of it."""
    low, high = 1, site.rank
    while low < high:
        rank = (low + high) // 2
        errors = [resized_branch(site.fqn, branch, rank, rows.get(id(branch))).error for branch in branches]
        low, high = (low, rank) if max(errors) <= drop else (rank + 1, high)
    return low
