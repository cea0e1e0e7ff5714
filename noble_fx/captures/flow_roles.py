"""Roles that names do not tell, read off a graph: traced on a copy without values, only where some role is open."""

from __future__ import annotations

from torch import nn

from noble_fx.captures.base import Declined
from noble_fx.captures.tracing import trace
from noble_fx.sites.find import LinearMap, find_maps
from noble_fx.sites.flow import flow_roles
from noble_fx.sites.roles import OTHER


def maps_with_roles(model: nn.Module) -> list[LinearMap]:
    """Every linear map of `model`, its role from its name, else from where its result goes if that can be traced."""
    maps = find_maps(model)
    if not any(linear_map.site.role == OTHER and _is_open(linear_map) for linear_map in maps):
        return maps
    try:
        return find_maps(model, flow_roles(model, trace(model)))
    except Declined:
        return maps


def _is_open(linear_map: LinearMap) -> bool:
    """True for a layer that may be chosen: the role of a head or a router decides nothing."""
    return linear_map.module is not None and not linear_map.against and not linear_map.obstacle
