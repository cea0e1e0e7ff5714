"""Routers: the maps whose result says which expert of a mixture computes a token.

One is known by its name or its class, by as many outputs as there are experts beside it, and in a graph by what is done
with its result:

    topk(x Wᵀ), softmax(x Wᵀ)[..., i] · expertᵢ(x)
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import nn

_NAME = re.compile(r"router(_\w+)?|\w+_router|\w*(expert|moe)_gate|gate_network")
_GATE = re.compile(r"gate|gating|wg|gate_proj")  # a name of other things too, but where there are experts beside it
_CLASS = re.compile(r"Router(MLP|Linear|Layer)?$|Top\d?[kK]?Gat(e|ing)$|Mo[eE]\w*Gat(e|ing)$")
_EXPERTS = re.compile(r"experts?", re.IGNORECASE)


def is_router(model: nn.Module, fqn: str, out_features: int) -> bool:
    """True for the map (or the owner of a bare weight) called `fqn`, where a mixture of experts is routed by it."""
    names = fqn.split(".") if fqn else []
    path = list(_path(model, names))
    if any(is_router_class(type(module)) for module in path[1:]):
        return True
    if any(_NAME.fullmatch(name) for name in names[-3:]):
        return True
    if any(map(_EXPERTS.search, names)):
        return False  # a part of an expert
    for holder, name in list(zip(path, names, strict=False))[-2:]:
        count = _experts(holder, name)
        if count and (_GATE.fullmatch(name) or out_features in count):
            return True
    return False


def is_router_class(cls: type) -> bool:
    """True for a class that calls itself a router (Llama4Router, JetMoeTopKGating, MoEGate)."""
    return _CLASS.search(cls.__name__) is not None


def _path(model: nn.Module, names: list[str]) -> Iterator[nn.Module]:
    """`model` and the modules on the way to the one that `names` lead to, itself included."""
    module = model
    yield module
    for name in names:
        module = getattr(module, name)
        yield module


def _experts(holder: nn.Module, name: str) -> set[int]:
    """How many experts `holder` has beside its child `name`, by its lists and stacked weights; empty without any."""
    counts: set[int] = set()
    for other, child in holder.named_children():
        if other == name or not _EXPERTS.search(f"{other} {type(child).__name__}"):
            continue
        stacked = {
            p.shape[0]
            for module in child.modules()
            for p in module._parameters.values()
            if p is not None and p.ndim == 3
        }
        counts |= {len(child)} if isinstance(child, nn.ModuleList | nn.ModuleDict) else stacked or {0}
    return counts
