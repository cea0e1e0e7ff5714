"""The adapters that a folder describes: their tensors by name before anything is changed, then they themselves.

"adapters": {"layers.0.q_proj": {"default": {"rank": 8, "alpha": 16.0, …, "weight": 1.0}}}
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from noble_fx.attach.adapters import branch_there, freeze
from noble_fx.attach.attach import branch_paths
from noble_fx.attach.draw import base_tensors
from noble_fx.branches.adapters import adapters_of
from noble_fx.config import NobleConfig
from noble_fx.errors import ConfigError, printable
from noble_fx.layers.quantized import computing_dtype
from noble_fx.sites.find import find_maps
from noble_fx.sites.layer_maps import LinearMap
from noble_fx.stacking import put_sites
from noble_fx.wrappers import own_name

_SETTINGS = ("rank", "alpha", "rslora", "dropout", "seed")


def expected_tensors(model: nn.Module, described: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors that are described, by name and without values; raises `ConfigError` where they have no place."""
    maps = _maps(model) if described else {}
    expected: dict[str, Tensor] = {}
    for fqn, adapters in described.items():
        if fqn not in maps or maps[fqn].site.experts or not isinstance(adapters, dict):
            raise ConfigError(f"the model has no layer {printable(fqn)} that adapters could be beside")
        site = maps[fqn].site
        path = own_name(branch_paths(site)[0], model)
        weight = base_tensors(model, site)[0]
        owner = model.get_submodule(site.weight.rpartition(".")[0] if site.weight else site.fqn)
        dtype = computing_dtype(model, owner, weight)
        for name, said in adapters.items():
            rank = _config(said, name).rank
            for leaf, shape in (("down", (rank, site.in_features)), ("up", (site.out_features, rank))):
                expected[f"{path}.adapters.{name}.{leaf}"] = torch.empty(shape, dtype=dtype, device="meta")  # type: ignore[arg-type]
    return expected


def put_described(model: nn.Module, described: Mapping[str, Any]) -> nn.Module:
    """Give a model the adapters that are described, weighed as it says; those that its settings made are there."""
    maps = _maps(model) if described else {}
    for fqn, adapters in described.items():
        place = maps[fqn]
        eager = place.eager.reason if place.eager else ""
        for name, said in adapters.items():
            branch, config = branch_there(model, place.site), _config(said, name)
            there = adapters_of(branch) if branch is not None else None
            if there is None or name not in there.named():
                site = replace(place.site, rank=said["rank"], selected=True, unfused=eager, reason="named in the file")
                put_sites(model, [site], config)
        held: Any = adapters_of(branch_there(model, place.site))  # type: ignore[arg-type]
        held.weigh({name: float(said.get("weight", 1.0)) for name, said in adapters.items()})
    if described:
        freeze(model)
    return model


def _maps(model: nn.Module) -> dict[str, LinearMap]:
    return {own_name(each.site.fqn, model): each for each in find_maps(model)}


def _config(said: Any, name: str) -> NobleConfig:
    """The settings of one adapter; raises `ConfigError` for what none has."""
    settings: dict[str, Any] = {key: said.get(key) for key in _SETTINGS} if isinstance(said, dict) else {}
    rank, weight = settings.get("rank"), said.get("weight", 1.0) if settings else 1.0
    if not isinstance(rank, int) or isinstance(rank, bool):
        raise ConfigError(f"the adapter {printable(name)} does not say its rank")
    if not isinstance(weight, int | float) or isinstance(weight, bool) or not math.isfinite(weight):
        raise ConfigError(f"the adapter {printable(name)} has the weight {printable(weight)}, which is no number")
    return NobleConfig(branch="lora", adapter=name, select=[], **settings)
