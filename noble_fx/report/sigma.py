"""σ as curves, at the start and now: every channel of h has the same value h, from -3 to 3, and gives one curve.

The start is what the seed drew; a branch without a seed, or without values, has none that anybody knows.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from noble_fx.branches.base import Branch
from noble_fx.branches.noble import NobleBranch
from noble_fx.explaining.account import Account
from noble_fx.sites.patterns import pattern
from noble_fx.training.looking.origin import ROLES, drawn_again

PLOTS = 12
CHANNELS = 4  # of a σ that are drawn, from all over its rank
REACH = 3.0  # of h to either side; h of a normed x is about a standard normal
POINTS = 61
WIDTH, HEIGHT = 260, 130


class Curves(NamedTuple):
    """One σ, drawn: paths of an SVG of WIDTH × HEIGHT."""

    site: str
    act: str
    before: list[str]
    now: list[str]
    zero: float  # where σ = 0 lies
    low: float
    high: float
    channels: tuple[int, ...]
    moved: dict[str, float]  # mean distance of ω and φ from where they started
    without: str  # why there is no start


class Sigmas(NamedTuple):
    """The curves of some sites, or why there are none."""

    curves: list[Curves]
    left_out: int
    without: str


def sigmas(account: Account) -> Sigmas:
    """The first and the last site of every kind in the blocks, as many as are drawn."""
    reasons = {name: _why_not(branch) for name, branch in account.branches.items()}
    able = {name: branch for name, branch in account.branches.items() if not reasons[name]}
    if not able:
        return Sigmas([], 0, next(iter(reasons.values()), "there is no branch that could be drawn"))
    chosen = _chosen(able)
    drawn = [_curves(name, able[name]) for name in chosen[:PLOTS]]
    return Sigmas(drawn, len(able) - len(drawn), "")


def _why_not(branch: Branch) -> str:
    if not isinstance(branch, NobleBranch):
        return f"a branch of kind {branch.kind!r} has no σ"
    tensors = [*branch.act.parameters(), *branch.act.buffers()]
    if any(tensor.is_meta for tensor in [branch.down, *tensors]):
        return "the model is on the meta device and has no values"
    if any(type(tensor) not in (Tensor, torch.nn.Parameter) for tensor in tensors):
        return "the values are spread over ranks, or are of a class of their own"
    return ""


def _chosen(branches: Mapping[str, Branch]) -> list[str]:
    kinds: dict[str, list[str]] = {}
    for name in branches:
        kinds.setdefault(pattern(name), []).append(name)
    first = [names[0] for names in kinds.values()]
    last = [names[-1] for names in kinds.values() if len(names) > 1]
    chosen = {*first[:PLOTS], *last[: max(PLOTS - len(first), 0)]}
    return [name for name in branches if name in chosen]


def _curves(name: str, branch: Branch) -> Curves:
    assert isinstance(branch, NobleBranch)
    again = drawn_again(branch)
    start = again if isinstance(again, NobleBranch) and _same_shapes(again, branch) else None
    now = values_of(branch)
    values = [now] + ([values_of(start)] if start else [])
    rank = now.shape[1]
    channels = tuple(dict.fromkeys(round(at * (rank - 1) / max(CHANNELS - 1, 1)) for at in range(CHANNELS)))
    low = min(float(each[:, list(channels)].nan_to_num().min()) for each in values)
    high = max(float(each[:, list(channels)].nan_to_num().max()) for each in values)
    low, high = (low - 0.5, high + 0.5) if high - low < 1e-6 else (low, high)

    def paths(each: Tensor) -> list[str]:
        return [_path(each[:, channel], low, high) for channel in channels]

    without = "" if start else "its start is not known: it was drawn without a seed, or has changed its form since"
    return Curves(
        site=name,
        act=branch.label,
        before=paths(values[1]) if start else [],
        now=paths(now),
        zero=_height(0.0, low, high),
        low=low,
        high=high,
        channels=channels,
        moved=_moved(start, branch) if start else {},
        without=without,
    )


def _same_shapes(one: Branch, other: Branch) -> bool:
    shapes = [{name: tensor.shape for name, tensor in each.named_parameters()} for each in (one, other)]
    return shapes[0] == shapes[1]


def values_of(branch: NobleBranch) -> Tensor:
    """σ of the same h in every channel [points, r], h from -REACH to REACH."""
    act = copy.deepcopy(branch.act).to("cpu", torch.float32).eval()
    h = torch.linspace(-REACH, REACH, POINTS, device="cpu")
    with torch.no_grad():
        values: Tensor = act(h[:, None].expand(-1, branch.down.shape[0]))
    return values


def _path(values: Tensor, low: float, high: float) -> str:
    points = values.nan_to_num().tolist()
    places = [f"{at * WIDTH / (POINTS - 1):.0f} {_height(value, low, high):.1f}" for at, value in enumerate(points)]
    return f"M{'L'.join(places)}"


def _height(value: float, low: float, high: float) -> float:
    return min(max((high - value) / (high - low), -1.0), 2.0) * HEIGHT


def _moved(start: Branch, now: Branch) -> dict[str, float]:
    far: dict[str, list[float]] = {}
    for (role, old, _), (_, new, _) in zip(start.parameter_roles(), now.parameter_roles(), strict=True):
        if role in ROLES:
            far.setdefault(role, []).append(float((new.detach().cpu().float() - old.detach().float()).abs().mean()))
    return {role: sum(each) / len(each) for role, each in far.items()}
