"""After a change of a model that carries branches: each of them says again what it is, and which settings make it.

`save` writes the settings that a branch carries, and `load` must make these very sites of them, with these ranks: so
they name every site, and the ranks that differ.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from noble_fx.attach.attach import branch_paths
from noble_fx.attach.gone import made_choice, note_choice
from noble_fx.attach.model_config import note
from noble_fx.branches.base import Branch
from noble_fx.errors import ConfigError
from noble_fx.sites.site import Site
from noble_fx.wrappers import own_name


def settle(model: nn.Module, sites: Sequence[Site]) -> None:
    """Tell every branch of `model` its site, the choice of `sites` and the settings by which they are made."""
    selected = [site for site in sites if site.selected]
    choice, settings = made_choice(model, sites), exact_settings(model, selected)
    for site in selected:
        for path in branch_paths(site):
            branch: Any = model.get_submodule(path)
            if branch.site is None:  # built by hand: nothing is made of its settings but itself
                branch.config = branch.config.replace(rank=branch.rank)
            else:
                branch.site = replace(site, reason=branch.site.reason)
                branch.choice, branch.config = choice, branch.config.replace(**settings)
    note_choice(model, choice)
    note(model)


def exact_settings(model: nn.Module, selected: Sequence[Site]) -> dict[str, Any]:
    """The settings that choose `selected` by name, each with its rank: the most frequent one, and what differs."""
    names: dict[int, list[str]] = {}
    for site in selected:
        names.setdefault(site.rank, []).append(own_name(site.fqn, model))
    ranks = Counter(site.rank for site in selected)
    usual = max(ranks, key=lambda rank: (ranks[rank], -rank), default=0)
    pattern = {f"^(?:{'|'.join(map(re.escape, fqns))})$": rank for rank, fqns in sorted(names.items()) if rank != usual}
    listed = [own_name(site.fqn, model) for site in selected]
    return {"rank": usual, "rank_pattern": pattern or None, "select": listed, "exclude": None}


def check_names(model: nn.Module, sites: Sequence[Site]) -> None:
    """Refuse a part of a transformed model, or what holds one: settings name its sites. Raises `ConfigError`."""
    listed = {path for site in sites if site.selected for path in branch_paths(site)}
    for path, branch in model.named_modules():
        if not isinstance(branch, Branch):
            continue
        own = own_name(path, model)
        if path not in listed:
            raise ConfigError(f"the branch at {own!r} stands at no layer that noble_fx.sites lists, and stays as it is")
        if branch.site is None or own in map(own_name, branch_paths(branch.site)):
            continue
        then = own_name(branch.site.fqn)
        raise ConfigError(
            f"the layer that holds {own!r} was called {then!r} when the model was transformed; call this with the "
            "module that was given to noble_fx.transform, whose names the settings of the branches hold"
        )
