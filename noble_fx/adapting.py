"""`noble_fx.use_adapters`, `drop_adapters`: which linear maps are on, by which weights, and which are there at all."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from noble_fx.attach.adapters import adapter_names, check_known, named_adapters, take_out, thaw
from noble_fx.attach.attach import named_branches
from noble_fx.attach.fast_path import keep_from_fast_path
from noble_fx.attach.model_config import note
from noble_fx.attach.restore import restored_on_error
from noble_fx.attach.unwrapped import check_unwrapped
from noble_fx.branches.lora import LoraBranch
from noble_fx.captures.table import captured
from noble_fx.errors import ConfigError, shown
from noble_fx.inspect import sites
from noble_fx.torch_versions import forget_compiled
from noble_fx.transform import remove


def use_adapters(model: nn.Module, adapters: str | Iterable[str] | Mapping[str, float] | None) -> nn.Module:
    """Switch adapters on, by a name, several names (they add up) or {name: weight}, and all others off; None: all off.

    Returns the model. A weight is a number in a buffer, so captured and compiled graphs need not be made again. What is
    off does not learn, and learns as before once it is on; where that changes, a compiled model is traced once more.
    Raises `ConfigError` for a name that is none, and `CaptureError` where a wrapper (DDP, FSDP) would not see what
    learns; nothing is changed then.
    """
    weights = _weights(adapters)
    check_known(model, weights)
    held = named_adapters(model)
    if any(_changes_learning(each, weights) for each in held.values()):
        check_unwrapped(model, "set_trainable", held)
    for each in held.values():
        each.weigh(weights)
    return model


def _weights(adapters: Any) -> dict[str, float]:
    if adapters is None:
        return {}
    if isinstance(adapters, str):
        return {adapters: 1.0}
    if isinstance(adapters, Mapping):
        for name, weight in adapters.items():
            number = isinstance(weight, int | float) and not isinstance(weight, bool) and math.isfinite(weight)
            if not number:
                raise ConfigError(f"the weight {shown(weight)} of the adapter {shown(name)} must be a finite number")
        return {name: float(weight) for name, weight in adapters.items()}
    names: list[Any] = list(adapters) if isinstance(adapters, Iterable) else [None]
    if not all(isinstance(name, str) for name in names):
        raise ConfigError(f"adapters={shown(adapters)} must be a name, a list of names, {{name: weight}} or None")
    return dict.fromkeys(names, 1.0)


def _changes_learning(adapters: Any, weights: Mapping[str, float]) -> bool:
    """Whether some parameter will learn that did not, or no more."""
    return any(
        bool(weights.get(name)) != bool(adapter.weighed)
        and (any(adapter.learns.values()) or any(p.requires_grad for p in adapter.parameters()))
        for name, adapter in adapters.named().items()
    )


def drop_adapters(model: nn.Module, names: str | Iterable[str] | None = None) -> nn.Module:
    """Take adapters out, in place: those of these names, or all. Weights and NOBLE's branches are untouched.

    Returns the model. With the last adapter whatever learned before the first one came learns again. Raises
    `ConfigError` for a name that is none and for some adapters of a captured model, `CaptureError` for a wrapped one.
    """
    wanted = list(adapter_names(model)) if names is None else [names] if isinstance(names, str) else list(names)
    check_known(model, wanted)
    held = named_adapters(model)
    check_unwrapped(model, "remove", held)
    branches = named_branches(model)
    alone = len(held) == len(branches) and all(isinstance(branch, LoraBranch) for branch in branches.values())
    if alone and set(wanted) == set(adapter_names(model)):
        return remove(model)
    if any(captured(model)):
        raise ConfigError(
            "the graph of a captured model holds its adapters; take out all: noble_fx.drop_adapters(model)"
        )
    forget_compiled()
    with restored_on_error(model):
        take_out(model, [site for site in sites(model) if site.selected], wanted)
        keep_from_fast_path(model)
        note(model)
        if not adapter_names(model):
            thaw(model)
    return model
