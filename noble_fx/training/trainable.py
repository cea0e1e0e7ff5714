"""What of a model learns: its branches, the model itself, or both."""

from __future__ import annotations

from torch import nn

from noble_fx.attach.adapters import switched_off_parameters
from noble_fx.attach.attach import named_branches
from noble_fx.attach.unwrapped import check_unwrapped
from noble_fx.errors import ConfigError, shown
from noble_fx.layers.quantized import is_frozen

WHAT = ("branches", "base", "all")


def set_trainable(model: nn.Module, what: str) -> nn.Module:
    """Let "branches", the "base" model or "all" require gradients, and nothing else; returns the model.

    A weight that torchao or bitsandbytes quantized, and an adapter that is off, stay frozen in any case.
    Build the optimizer's groups afterwards: `param_groups` leaves out what is frozen. Raises `ConfigError` for another
    word or a model without branches, and `CaptureError` for a wrapped model.
    """
    if what not in WHAT:
        raise ConfigError(f"what={shown(what)} must be one of {', '.join(map(repr, WHAT))}")
    branches = named_branches(model)
    if not branches:
        raise ConfigError("the model carries no branches; call noble_fx.transform first")
    check_unwrapped(model, "set_trainable", branches)
    off = switched_off_parameters(model)
    of_branches = {id(parameter) for branch in branches.values() for parameter in branch.parameters()}
    for parameter in model.parameters():
        if (parameter.is_floating_point() or parameter.is_complex()) and not is_frozen(parameter):
            wanted = what == "all" or (id(parameter) in of_branches) == (what == "branches")
            parameter.requires_grad_(wanted and id(parameter) not in off)
    return model
