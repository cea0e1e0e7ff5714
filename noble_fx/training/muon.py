"""The groups that Muon takes, and the others, for two optimizers side by side."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from noble_fx.errors import ConfigError, shown
from noble_fx.training.groups import Group, Groups


def muon_split(groups: Iterable[Group]) -> tuple[Groups, Groups]:
    """The groups of `param_groups(model, lr, muon=True)` for `torch.optim.Muon`, and those for AdamW beside it.

    Raises `ConfigError` for a group that does not say to which it belongs.
    """
    if not isinstance(groups, Iterable) or isinstance(groups, nn.Module):
        raise ConfigError(f"{shown(groups)} holds no groups; muon_split takes those of noble_fx.param_groups")
    groups = list(groups)
    for i, group in enumerate(groups):
        if not isinstance(group, dict):
            raise ConfigError(f"group {i} is {shown(group)}; muon_split takes the groups of noble_fx.param_groups")
        if "use_muon" not in group:
            raise ConfigError(f"group {i} has no 'use_muon'; build the groups by noble_fx.param_groups(..., muon=True)")
    return Groups(g for g in groups if g["use_muon"]), Groups(g for g in groups if not g["use_muon"])
