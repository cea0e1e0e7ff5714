"""A layer with a branch that another tool replaces: float8 training and quantization-aware training make a new layer
over the same weight, which would leave the branch behind without a word. It moves on to the new layer.

    parent.wq = Float8Linear over wq.weight      ->      parent.wq = NobleFloat8Linear with wq's branch

PyTorch calls a hook for each module that is put into another; it is the one place that sees all such tools. What holds
the old layer inside (a wrapper) or has a weight of its own (another layer, put there by the user) is left alone.
The old layer with more or fewer outputs takes its branch along (`resized.py`).
"""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from noble_fx.branches.base import Branch
from noble_fx.errors import ConfigError
from noble_fx.layers.base import Augmented, plain_class
from noble_fx.layers.quantized import is_converted, is_over
from noble_fx.layers.registry import augmented_class, obstacle, unsuitable_weight, why_eager
from noble_fx.layers.resized import resize, resized_outputs

_watching = False


def _keep_branch(parent: nn.Module, name: str, new: nn.Module | None) -> None:
    """Move the branch of `parent.<name>` to `new`, which is about to take its place over the same weight."""
    old: Any = parent._modules.get(name)
    if not isinstance(old, Augmented) or new is None:
        return
    outputs = resized_outputs(old, new)
    if outputs is None and not _takes_the_place(old, new):
        return
    layer: Any = new
    branch, kind = old.noble, type(layer).__qualname__
    refusal = obstacle(layer) or unsuitable_weight(layer)
    if refusal or not isinstance(branch, Branch):
        raise ConfigError(
            f"the layer {name!r} has a branch, which the {kind} that takes its place over the same weight cannot carry"
            f"{f': {refusal}' if refusal else ''}; leave layers with a branch out of this conversion, or take the "
            "branches out first with noble_fx.remove(model)"
        )
    eager = why_eager(layer)
    if outputs is not None:
        resize(branch, name, outputs)
    layer.__class__ = augmented_class(layer)
    layer.noble = branch
    branch.prepare("fuse=False" if not branch.config.fuse else eager.reason if eager else "")
    warnings.warn(
        f"layers with a branch are replaced by {kind} over the same weight; their branches move on to it"
        if outputs is None
        else f"the layer {name!r} has {outputs} outputs now, and its branch follows; new rows are drawn",
        stacklevel=4,
    )


def _takes_the_place(old: Any, new: nn.Module) -> bool:
    """True for a layer without a branch over the very weight of `old`, and without `old` inside."""
    weight = old._parameters.get("weight")
    if weight is None or isinstance(new, Augmented):
        return False
    theirs = new._parameters.get("weight")
    if theirs is not weight and not is_over(theirs, weight) and not is_converted(plain_class(old), weight, theirs):
        return False
    return all(module is not old for module in new.modules())


def watch() -> None:
    """Keep branches through such replacements, in this process from now on; once is enough."""
    global _watching
    if not _watching:
        register_module_module_registration_hook(_keep_branch)
        _watching = True
