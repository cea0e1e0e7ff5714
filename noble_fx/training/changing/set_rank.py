"""`noble_fx.set_rank`: the ranks of branches, changed while the model is being trained."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from noble_fx.attach.attach import branch_paths, exchange, site_name
from noble_fx.attach.restore import restored_on_error
from noble_fx.attach.settled import settle
from noble_fx.branches.base import Branch
from noble_fx.branches.channels import Resized
from noble_fx.branches.own_tensors import more_than_its_tensors
from noble_fx.config import RankSpec, check_rank, check_regex, plain_rank, resolve_rank
from noble_fx.errors import ConfigError, Refusal, nearest
from noble_fx.sites.site import Site
from noble_fx.tables import as_text, table
from noble_fx.torch_versions import forget_compiled
from noble_fx.training.changing.collect import collected
from noble_fx.training.changing.optimizers import apply_changes, as_optimizers, check_held, put_back_on_error
from noble_fx.training.changing.parameter_changes import Change, exchanged
from noble_fx.training.changing.running import Running, running
from noble_fx.transform import require_kernels
from noble_fx.wrappers import own_name

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class RankChange:
    """One site whose rank changed; `error` is how far its branch is off now, over its result, measured on `on`."""

    fqn: str
    before: int
    after: int
    error: float = 0.0
    on: str = ""  # "inputs", or "noise" where no input reached it; "" where it grew, which changes nothing


class RankChanges(list[RankChange]):
    """What `set_rank` did, a site an entry; `print` shows a table."""

    def __str__(self) -> str:
        return as_text(self)

    def __rich__(self) -> Table:
        shown = table()
        for name in ("layer", "rank", "error", "on"):
            shown.add_column(name, justify="right" if name in ("rank", "error") else "left")
        for change in self:
            shown.add_row(
                change.fqn, f"{change.before} → {change.after}", f"{change.error:.2%}" if change.on else "–", change.on
            )
        return shown


def set_rank(
    model: nn.Module, rank: RankSpec | Mapping[str, RankSpec], optimizer: Any = None, inputs: Any = None
) -> RankChanges:
    """Give branches another rank, in place, and take what `optimizer` knows of them along; returns what was done.

    `rank`: a number or a share of min(K, N) for every branch, or {regex: rank} for some. More channels leave what the
    model computes as it is: U is zero for them. Of fewer channels those stay that the result needs most for `inputs`
    (a batch for the model, or a list of batches; without, for noise), and M and U are fitted to make up for the rest.
    Call it between two steps; gradients of what is new are zero. Raises `ConfigError` or `CaptureError`, each with
    the remedy, also for values that are not finite; model and optimizer are then as they were. A model in
    DistributedDataParallel is refused; do not give `ddp.module`, which cannot be told from a model that is in nothing.
    """
    optimizers = as_optimizers(optimizer)
    found = running(model)
    wanted = _wanted(found, rank)
    changing = [site for site in found.selected if wanted[site.fqn] != site.rank]
    shrinking = [b for site in changing if wanted[site.fqn] < site.rank for b in found.branches(site)]
    check_finite(found, shrinking)
    rows = collected(found.model, shrinking, inputs) if inputs is not None else {}
    new = {site.fqn: _resized(found, site, wanted[site.fqn], rows) for site in changing}
    changes = _parameter_changes(found, changing, new)
    check_held(optimizers, changes)
    check_kernels(new)
    report = RankChanges(described(found, site, new[site.fqn], rows) for site in changing)
    if changing:
        forget_compiled()
    with restored_on_error(found.model), put_back_on_error(optimizers):
        if changing:
            put(found, changing, new)
            apply_changes(optimizers, found.model, changes)
    return report


def check_kernels(new: Mapping[str, list[Resized]]) -> None:
    """Where fuse="require" was asked for, the new branches must have kernels too; raises `ConfigError`."""
    for fqn, answers in new.items():
        if answers[0].branch.config.fuse == "require":
            require_kernels({fqn: [answer.branch for answer in answers]})


def put(found: Running, changing: list[Site], new: Mapping[str, list[Resized]]) -> None:
    """The new branches in the places of the old ones."""
    by_config = {fqn: [answer.branch for answer in answers] for fqn, answers in new.items()}
    exchange(found.model, _places(found, changing, new))
    settle(found.model, [_after(site, by_config.get(site.fqn)) for site in found.sites])


def check_finite(found: Running, shrinking: Sequence[Branch]) -> None:
    """Refuse to choose among channels of a branch whose own numbers are not finite; raises `ConfigError`."""
    going = set(map(id, shrinking))
    for site in found.selected:
        for path, branch in zip(branch_paths(site), found.branches(site), strict=True):
            name = _not_finite(branch) if id(branch) in going else ""
            if name:
                raise ConfigError(
                    f"{own_name(path, found.model)}.{name} has values that are not finite, so nobody can tell which "
                    "channels to keep; load a checkpoint, or draw branches anew by noble_fx.reset_branches(model)"
                )


def _not_finite(branch: Branch) -> str:
    """The first parameter of a branch that holds a NaN or an infinity, or ""."""
    named = (each for each in branch.named_parameters() if not each[1].is_meta)
    return next((name for name, parameter in named if not parameter.isfinite().all()), "")


def _wanted(found: Running, rank: Any) -> dict[str, int]:
    """The rank of every site with a branch; raises `ConfigError` for what is none, or does not fit."""
    if isinstance(rank, Mapping):
        rank = {pattern: plain_rank(value) for pattern, value in rank.items()}
        for pattern, value in rank.items():
            check_regex(pattern, "rank")
            check_rank(value, f"rank[{pattern!r}]", budget=False)
            names = [site.fqn for site in found.selected]
            if not any(site.matches(pattern) for site in found.selected):
                raise ConfigError(f"rank {pattern!r} matches no layer with a branch{nearest(pattern, names)}")
    else:
        rank = plain_rank(rank)
        check_rank(rank, "rank", budget=False)
    return {site.fqn: _rank_of(site, rank) for site in found.selected}


def _rank_of(site: Site, rank: Any) -> int:
    limit = min(site.in_features, site.out_features)
    if isinstance(rank, Mapping):
        first = next((value for pattern, value in rank.items() if site.matches(pattern)), site.rank)
    else:
        first = rank
    wanted = resolve_rank(first, site.in_features, site.out_features)
    if wanted >= limit and wanted != site.rank:
        raise ConfigError(
            f"rank {wanted} does not fit {site.fqn!r} [{site.out_features}, {site.in_features}]: it must be below "
            f"min(K, N) = {limit}; give this layer one of its own: rank={{{'^' + re.escape(site.fqn) + '$'!r}: …}}"
        )
    return wanted


def _resized(found: Running, site: Site, rank: int, rows: Mapping[int, Tensor]) -> list[Resized]:
    return [
        resized_branch(own_name(site_name(path), found.model), branch, rank, rows.get(id(branch)))
        for path, branch in zip(branch_paths(site), found.branches(site), strict=True)
    ]


def resized_branch(name: str, old: Branch, rank: int, rows: Tensor | None) -> Resized:
    """The new branch as its place wants it; raises `ConfigError` where there is none."""
    if rows is not None and not rows.isfinite().all():
        raise ConfigError(
            f"the inputs give non-finite values at site {name!r}; leave out rows with NaN or infinities, or see where "
            "they come from by noble_fx.find_nonfinite(model, ...)"
        )
    answer = other_rank(old, rank, rows)
    if isinstance(answer, Resized) and rank < old.rank and (_not_finite(answer.branch) or not isfinite(answer.error)):
        answer = Refusal("what is fitted to its values is not finite: they are too large for their dtype")
    if isinstance(answer, Refusal):
        raise ConfigError(f"the branch at {name!r} cannot go from rank {old.rank} to {rank}: {answer.reason}")
    return as_its_place_wants(old, answer)


def as_its_place_wants(old: Branch, answer: Resized) -> Resized:
    """The new branch with the site, the mode and the gradients of the old one, ready to run."""
    new = answer.branch
    new.site, new.choice, new.drawn_as = old.site, old.choice, old.drawn_as
    of_sigma = isinstance(old.fused_form(), Refusal)  # else what its place says
    new.prepare("" if of_sigma else old.unfused)
    new.train(old.training)
    for name, parameter in old.named_parameters():
        if parameter.grad is not None:
            own = new.get_parameter(name)
            own.grad = answer.kept.carry(parameter.grad, torch.zeros_like(own), answer.axes[name])
    return answer


def other_rank(old: Branch, rank: int, rows: Tensor | None) -> Resized | Refusal:
    """A branch of another rank for this one, as near to it as it can be for `rows` of its bottleneck; or why none."""
    if any(parameter.is_meta for parameter in old.parameters()):
        return Refusal("it is on the meta device and has no values; transform anew with this rank")
    try:
        return more_than_its_tensors(old) or old.resized(rank, rows)
    except ConfigError as error:  # of a σ whose factory was lost when the model was copied or pickled
        return Refusal(f"{error}; noble_fx.register_activation gives σ a name that copies keep")


def _parameter_changes(found: Running, changing: list[Site], new: Mapping[str, list[Resized]]) -> list[Change]:
    return [
        change
        for site in changing
        for path, old, answer in zip(branch_paths(site), found.branches(site), new[site.fqn], strict=True)
        for change in exchanged(path, old, answer)
    ]


def _places(found: Running, changing: list[Site], new: Mapping[str, list[Resized]]) -> dict[int, Branch]:
    return {
        id(old): answer.branch
        for site in changing
        for old, answer in zip(found.branches(site), new[site.fqn], strict=True)
    }


def _after(site: Site, branches: list[Branch] | None) -> Site:
    if branches is None:
        return site
    count = sum(parameter.numel() for branch in branches for parameter in branch.parameters())
    return replace(site, rank=branches[0].rank, params=count, unfused=branches[0].unfused)


def described(found: Running, site: Site, answers: list[Resized], rows: Mapping[int, Tensor]) -> RankChange:
    """What is done at a site, before it is done; of stacked experts the worst."""
    after = answers[0].branch.rank
    reached = all(id(branch) in rows for branch in found.branches(site))
    on = "" if after > site.rank else "inputs" if reached else "noise"
    worst = max(answer.error for answer in answers)
    return RankChange(own_name(site.fqn, found.model), site.rank, after, worst, on)
