"""What becomes of the parameters that an optimizer holds when branches change: exchanged, added or gone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from noble_fx.branches.base import Branch
from noble_fx.branches.channels import Axes, Kept, Resized


@dataclass(frozen=True)
class Change:
    """One parameter: `old` where it was, `new` where it is; `ratio` is the multiplier of its rate over that of `old`.

    One that is added goes with `old`, a parameter of the same role, which stays. `kept` and `axes` say which entries
    are carried, None for none.
    """

    name: str
    old: nn.Parameter
    new: nn.Parameter | None
    ratio: float = 1.0
    kept: Kept | None = None
    axes: Axes = ()
    added: bool = False


def exchanged(fqn: str, old: Branch, new: Resized) -> list[Change]:
    """A branch in the place of another."""
    names = dict(new.branch.named_parameters())
    before, after = _rates(old), _rates(new.branch)
    changes = []
    for name, parameter in old.named_parameters():
        ratio = after[id(names[name])] / before[id(parameter)] if id(parameter) in before else 1.0
        changes.append(Change(f"{fqn}.{name}", parameter, names[name], ratio, new.kept, new.axes[name]))
    return changes


def gone(fqn: str, branch: Branch) -> list[Change]:
    """A branch that is taken out."""
    return [Change(f"{fqn}.{name}", parameter, None) for name, parameter in branch.named_parameters()]


def added(fqn: str, new: Branch, others: Iterable[Branch]) -> list[Change]:
    """A branch that comes to `others`, of which one has a parameter of each role."""
    like: dict[str, tuple[nn.Parameter, float]] = {}
    for branch in others:
        for role, parameter, rate in branch.parameter_roles():
            if role not in like or (parameter.requires_grad and not like[role][0].requires_grad):
                like[role] = (parameter, rate.lr)
    names: dict[int, str] = {id(parameter): name for name, parameter in new.named_parameters()}
    changes = []
    for role, parameter, rate in new.parameter_roles():
        if role in like:
            other, lr = like[role]
            name = f"{fqn}.{names[id(parameter)]}"
            changes.append(Change(name, other, parameter, rate.lr / lr if lr else 1.0, added=True))
    return changes


def _rates(branch: Any) -> dict[int, float]:
    return {id(parameter): rate.lr for _, parameter, rate in branch.parameter_roles()}
