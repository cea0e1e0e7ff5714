"""`noble_fx.save_peft`, `load_peft`: one adapter as a folder that peft reads and writes, and the Hub has."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from noble_fx.attach.adapters import branch_there, check_known, freeze, named_adapters
from noble_fx.attach.restore import restored_on_error
from noble_fx.branches.adapters import adapters_of
from noble_fx.checkpoints import peft_folder
from noble_fx.checkpoints.peft_folder import CONFIG, WEIGHTS, Lora, PeftAdapter
from noble_fx.config import NobleConfig, check_adapter_name
from noble_fx.distributed import is_distributed
from noble_fx.errors import CheckpointError, ConfigError, printable
from noble_fx.files import as_path, staged
from noble_fx.layers.registry import layout_of
from noble_fx.sites.find import find_maps
from noble_fx.sites.layer_maps import LinearMap
from noble_fx.stacking import check_open, put_sites
from noble_fx.wrappers import own_name, unwrapped

_KNOWN = (CONFIG, WEIGHTS, "README.md")
_LAYOUTS = ("[N, K]", "[K, N]")


def save_peft(model: nn.Module, folder: str | Path, adapter: str = "default", overwrite: bool = False) -> Path:
    """Write one adapter as peft's `save_pretrained` does, without the weights that it is beside; returns the folder.

    peft puts it on the model that has these layers by these names: the plain one. Its weight (`use_adapters`) is no
    part of it. Raises `ConfigError` for a name that is none, and `CheckpointError` for what such a folder cannot hold:
    an adapter of a parameter that is no layer's weight, or one that is sharded.
    """
    model = unwrapped(model)
    check_known(model, [adapter])
    maps = {each.site.fqn: each for each in find_maps(model)}
    held = {
        fqn: adapters.named()[adapter] for fqn, adapters in named_adapters(model).items() if adapter in adapters.named()
    }
    layouts = {fqn: _layout(model, fqn, maps) for fqn in held}
    rslora, dropout = {each.rslora for each in held.values()}, {each.dropout for each in held.values()}
    if len(rslora) > 1 or len(dropout) > 1:
        raise CheckpointError(
            f"the adapter {adapter!r} has several scales (rslora) or dropouts, and such a folder has one"
        )
    if any(is_distributed(p) for each in held.values() for p in each.parameters()):
        raise CheckpointError(f"the adapter {adapter!r} is spread over ranks; save the model with noble_fx.save")
    layers = {own_name(fqn, model): Lora(each.down, each.up, each.alpha) for fqn, each in held.items()}
    others = [name for name, _ in model.named_modules() if name not in held]
    place = Path(os.path.realpath(as_path(folder, CheckpointError)))
    base = getattr(getattr(model, "config", None), "_name_or_path", None) or None
    with staged(place, CheckpointError, overwrite, partial(_stranger, _KNOWN)) as work:
        (made := work / place.name).mkdir()
        whole = PeftAdapter(layers, rslora.pop(), dropout.pop())
        peft_folder.write(made, whole, others, "[K, N]" in layouts.values(), base if isinstance(base, str) else None)
    return Path(folder)


def _layout(model: nn.Module, fqn: str, maps: dict[str, LinearMap]) -> str:
    layout = "" if fqn not in maps or maps[fqn].site.weight else layout_of(model.get_submodule(fqn))
    if layout not in _LAYOUTS:
        raise CheckpointError(
            f"the adapter at {fqn!r} is beside no layer with a weight [N, K] of its own, and peft's folders hold those "
            "alone; noble_fx.save holds it"
        )
    return layout


def _stranger(known: tuple[str, ...], folder: Path) -> str:
    return next((printable(entry.name) for entry in sorted(folder.iterdir()) if entry.name not in known), "")


def load_peft(model: nn.Module, folder: str | Path, adapter: str = "default") -> nn.Module:
    """Put a LoRA that peft wrote beside the layers of a plain model, or of one with NOBLE's branches, and switch it on.

    In place, and everything else is frozen, as after `transform(branch="lora")`. Raises `CheckpointError` for layers
    that are not there or of other shapes, for DoRA and every other kind of adapter by its name, and for a pickle;
    `ConfigError` for a name that is taken. The model is then as it was.
    """
    check_adapter_name(adapter)
    check_open(model)
    if taken := [fqn for fqn, adapters in named_adapters(model).items() if adapter in adapters.named()]:
        raise ConfigError(f"there is an adapter {adapter!r} already (at {taken[0]!r}); load it under another name")
    path = as_path(folder, CheckpointError)
    found = peft_folder.read(path)
    maps = {own_name(each.site.fqn, model): each for each in find_maps(model)}
    places = {fqn: _place(path, fqn, lora, maps) for fqn, lora in found.layers.items()}
    shared: dict[str, Any] = {"branch": "lora", "adapter": adapter, "rslora": found.rslora, "dropout": found.dropout}
    with restored_on_error(model), torch.no_grad():
        for fqn, lora in found.layers.items():
            rank, eager = len(lora.down), places[fqn].eager
            reason, unfused = f"in {path.name}", eager.reason if eager else ""
            site = replace(places[fqn].site, rank=rank, selected=True, action="add", unfused=unfused, reason=reason)
            put_sites(model, [site], NobleConfig(rank=rank, alpha=lora.alpha, select=[fqn], **shared))
            branch: Any = branch_there(model, site)
            own: Any = adapters_of(branch)
            own.named()[adapter].down.copy_(lora.down)
            own.named()[adapter].up.copy_(lora.up)
        freeze(model)
    return model


def _place(path: Path, fqn: str, lora: Lora, maps: dict[str, LinearMap]) -> LinearMap:
    """The layer of that name; raises `CheckpointError` where there is none that could take this."""
    place = maps.get(fqn)
    if place is None:
        listed = ", ".join(list(maps)[:3])
        raise CheckpointError(
            f"{printable(path)} has a part for {printable(fqn)}, which is no linear layer here ({listed}, …)"
        )
    site = place.site
    if place.obstacle or site.weight:
        raise CheckpointError(f"{printable(fqn)} cannot carry an adapter: {place.obstacle or 'no layer of its own'}")
    if (lora.down.shape[1], len(lora.up)) != (site.in_features, site.out_features):
        raise CheckpointError(
            f"{printable(path)} has {lora.down.shape[1]} → {len(lora.up)} for {printable(fqn)}, which is "
            f"{site.in_features} → {site.out_features} here"
        )
    return place
