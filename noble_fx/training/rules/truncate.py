"""`noble_fx.truncate`: a model that was trained for it loses the last channels of its branches, in place. Experimental.

`set_rank` chooses which channels go and fits M and U again, for any branch. This takes the first ones as they are,
which `Prefix` trained to do without the others, or what gates have left; `fold(drop=…)` does what `set_rank` does, in
a copy for inference.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

from torch import Tensor, nn

from noble_fx.attach.restore import restored_on_error, unchanged
from noble_fx.branches.base import Branch
from noble_fx.branches.channels import Resized
from noble_fx.branches.masks import bare, masked
from noble_fx.errors import ConfigError, Refusal, shown
from noble_fx.sites.site import Site
from noble_fx.torch_versions import forget_compiled
from noble_fx.training.changing.collect import collected
from noble_fx.training.changing.running import Running, running
from noble_fx.training.changing.set_rank import (
    RankChanges,
    as_its_place_wants,
    check_finite,
    check_kernels,
    described,
    put,
    set_rank,
)
from noble_fx.training.rules.channels import (
    asked,
    branches_of,
    check_silent,
    checked_rank,
    gate,
    masks,
    share,
    with_places,
)
from noble_fx.training.rules.gates import fold_gates, speaking

Loss = Callable[[nn.Module], float]


@dataclass(frozen=True)
class _Wish:
    """How far to go: one of the three."""

    rank: int | None
    budget: int | None
    loss: Loss | None
    within: float


def truncate(
    model: nn.Module,
    rank: int | None = None,
    budget: int | None = None,
    loss: Loss | None = None,
    within: float = 0.02,
    inputs: Any = None,
    untrained: bool = False,
) -> RankChanges:
    """Keep the first channels of every branch, in place, and take masks or gates out; returns what was done.

    Of a model with `Prefix`: `rank` channels of the widest branch (of the others the same share), or as many as leave
    branches at most `budget` parameters, or the fewest, found by halving, with loss(model) no more than `within` above
    what it is with all. Of one with `Gates`, without any of these: all channels whose gate is zero, and what σ's matrix
    needs of the others is chosen and fitted as by `set_rank`. `inputs` (as for `set_rank`) to measure the error on.
    `untrained=True` cuts a model that no rule has prepared. Parameters are new ones: build optimizers anew. Raises
    `ConfigError` or `CaptureError`; the model is then as it was.
    """
    found = running(model)
    wish = _checked(found, rank, budget, loss, within)
    gates = {name: gate(branch) for name, branch in branches_of(found)}
    if any(held is not None for held in gates.values()):
        return _to_what_gates_left(found, wish, inputs)
    if wish is None:
        raise ConfigError("truncate takes one of rank=…, budget=… and loss=…; only gates say themselves what is left")
    trained = any(masks(branch) for _, branch in branches_of(found))
    if not trained and untrained is not True:
        raise ConfigError(
            "the branches were not trained to do without their last channels (noble_fx.training.rules.Prefix); "
            "noble_fx.set_rank chooses channels of any branch and fits the rest again, and untrained=True cuts here "
            "all the same and says how far off each branch is"
        )
    with restored_on_error(found.model):
        if not trained:
            with_places(found, _with_masks, "cut")
        return _cut(found, _chosen(found, wish), inputs)


def _checked(found: Running, rank: Any, budget: Any, loss: Any, within: Any) -> _Wish | None:
    if sum(each is not None for each in (rank, budget, loss)) > 1:
        raise ConfigError("truncate takes one of rank=…, budget=… and loss=…")
    if rank is not None:
        checked_rank(rank, _widest(found), "rank")
    if budget is not None and (isinstance(budget, bool) or not isinstance(budget, int) or budget < 1):
        raise ConfigError(f"budget={shown(budget)} must be a number of parameters")
    if loss is not None and not callable(loss):
        raise ConfigError(f"loss={shown(loss)} must be a callable(model) -> float")
    if isinstance(within, bool) or not isinstance(within, int | float) or not within >= 0:
        raise ConfigError(f"within={shown(within)} must be a number, 0 or more")
    return None if rank is None and budget is None and loss is None else _Wish(rank, budget, loss, within)


def _widest(found: Running) -> int:
    return max(site.rank for site in found.selected)


def _with_masks(branch: Branch, act: nn.Module) -> nn.Module | Refusal:
    return check_silent(branch) or masked(act, branch.rank, "none", next(branch.parameters()))


# --- how many --------------------------------------------------------------------------------------------------------


def _chosen(found: Running, wish: _Wish) -> int:
    """The channels that the widest branch keeps."""
    widest = _widest(found)
    if wish.rank is not None:
        return wish.rank
    if wish.budget is not None:
        budget = wish.budget
        if _parameters(found, 1) > budget:
            raise ConfigError(f"budget={budget} is below {_parameters(found, 1)}, what branches of rank 1 have")
        return max(count for count in range(1, widest + 1) if _parameters(found, count) <= budget)
    assert wish.loss is not None
    return _by_loss(found, wish.loss, wish.within)


def _parameters(found: Running, count: int) -> int:
    """What all branches have where the widest one keeps `count` channels."""
    total = 0
    for _, branch in branches_of(found):
        rank = share(count, _widest(found), branch.rank)
        kind: Any = type(branch)
        total += kind.parameter_count(branch.in_features, branch.out_features, rank, branch.config)
    return total


def _by_loss(found: Running, loss: Loss, within: float) -> int:
    branches = [branch for _, branch in branches_of(found)]
    widest = _widest(found)

    def at(count: int) -> float:
        with asked(branches, count, widest), unchanged(found.model):
            answer = float(loss(found.model))
        if not isfinite(answer):
            raise ConfigError(f"loss(model) is {answer} at rank {count}; give one that says how good the model is")
        return answer

    allowed = at(widest) + within
    low, high = 1, widest
    while low < high:
        count = (low + high) // 2
        low, high = (low, count) if at(count) <= allowed else (count + 1, high)
    return low


# --- the cut ---------------------------------------------------------------------------------------------------------


def _cut(found: Running, count: int, inputs: Any) -> RankChanges:
    widest = _widest(found)
    wanted = {site.fqn: share(count, widest, site.rank) for site in found.selected}
    changing = [site for site in found.selected if wanted[site.fqn] < site.rank]
    check_finite(found, [branch for site in changing for branch in found.branches(site)])
    factors = {id(branch): mask.factor(wanted[site.fqn]) for site, branch, mask in _first_masks(found)}
    with_places(found, lambda branch, act: bare(act), "given its σ back")
    rows: Mapping[int, Tensor] = {}
    if inputs is not None:
        rows = collected(found.model, [branch for site in changing for branch in found.branches(site)], inputs)
    new = {
        site.fqn: [
            _shorter(site, branch, wanted[site.fqn], factors[id(branch)], rows) for branch in found.branches(site)
        ]
        for site in changing
    }
    check_kernels(new)
    report = RankChanges(described(found, site, new[site.fqn], rows) for site in changing)
    forget_compiled()
    if changing:
        put(found, changing, new)
    return report


def _first_masks(found: Running) -> list[tuple[Site, Branch, Any]]:
    return [(site, branch, masks(branch)[0]) for site in found.selected for branch in found.branches(site)]


def _shorter(site: Site, branch: Branch, rank: int, factor: float, rows: Mapping[int, Tensor]) -> Resized:
    answer = branch.shortened(rank, factor, rows.get(id(branch)))
    if isinstance(answer, Refusal):
        raise ConfigError(f"the branch at {site.fqn!r} cannot go from rank {branch.rank} to {rank}: {answer.reason}")
    return as_its_place_wants(branch, answer)


def _to_what_gates_left(found: Running, wish: _Wish | None, inputs: Any) -> RankChanges:
    """Fold the gates, and let `set_rank` take as many channels out as they have silenced."""
    if wish is not None:
        raise ConfigError("the branches have gates, which say what is left; call truncate(model) without a number")
    with restored_on_error(found.model) as before:
        before.keep(parameter for _, branch in branches_of(found) for parameter in branch.parameters())
        left = {
            f"^{re.escape(site.fqn)}$": max(max(map(_speaking, found.branches(site))), 1) for site in found.selected
        }
        fold_gates(found)
        return set_rank(found.model, left, inputs=inputs)


def _speaking(branch: Branch) -> int:
    held = gate(branch)
    return branch.rank if held is None else speaking(held)
