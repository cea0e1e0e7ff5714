"""The sites of a model that have a branch, by the user's own names: what the numbers of training are listed under."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from torch import nn

from noble_fx.attach.attach import named_branches, site_name
from noble_fx.branches.base import Branch
from noble_fx.branches.experts import StackedBranches
from noble_fx.errors import ConfigError
from noble_fx.wrappers import own_name

TAKEN = ("total", "lr")  # what the keys of `stats` say besides sites


class Place(NamedTuple):
    """A site by its name, the module that computes its branch, and its branches: one, or one per stacked expert."""

    site: str
    holder: nn.Module
    branches: tuple[Branch, ...]


def places(model: nn.Module) -> list[Place]:
    """Every site of `model` that has a branch, in the model's order; raises `ConfigError` where there is none."""
    if not named_branches(model):
        raise ConfigError("the model carries no branches; call noble_fx.transform first")
    found: list[Place] = []
    seen: set[int] = set()
    for fqn, module in model.named_modules():
        if isinstance(module, Branch | StackedBranches) and id(module) not in seen:
            branches = (module,) if isinstance(module, Branch) else tuple(module.branches())
            seen |= set(map(id, branches))
            found.append(Place(_named(own_name(site_name(fqn), model)), module, branches))
    return found


def names_by_holder(sites: Iterable[Place]) -> dict[int, str]:
    """The name of a site by the identity of the module that computes its branch."""
    return {id(place.holder): place.site for place in sites}


def _named(name: str) -> str:
    """A layer that is the whole model has no name, and one called "total" would be taken for the sum."""
    return f"{name}_" if name in TAKEN else name or "model"
