"""What an optimizer remembers of a parameter, given to the one that takes its place.

a tensor of the parameter's shape     the entries of kept channels, zeros elsewhere
a number, a tensor of one             the same: steps go on
anything else                         refused: nobody can tell which of it belongs to which channel
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from noble_fx.errors import ConfigError
from noble_fx.training.changing.parameter_changes import Change

_PLAIN = (bool, int, float, str, type(None))


def carried_state(state: dict[Any, Any], change: Change, optimizer: str) -> dict[Any, Any]:
    """The state of `change.new` from that of `change.old`; raises `ConfigError` where it is not understood."""
    assert change.new is not None
    return {key: _carried(key, value, change, optimizer) for key, value in state.items()}


def _carried(key: Any, value: Any, change: Change, optimizer: str) -> Any:
    new, kept = change.new, change.kept
    assert new is not None
    if kept is not None and type(value) is Tensor and value.shape == change.old.shape:
        return kept.carry(value, torch.zeros(new.shape, dtype=value.dtype, device=value.device), change.axes)
    if isinstance(value, _PLAIN) or (type(value) is Tensor and value.numel() == 1):
        return value.clone() if isinstance(value, Tensor) else value
    what = f"a {type(value).__name__}" + (f" {list(value.shape)}" if isinstance(value, Tensor) else "")
    raise ConfigError(
        f"the state {key!r} that {optimizer} keeps of {change.name!r} {list(change.old.shape)} is {what}, and nobody "
        "can tell what of it belongs to which channel; call this without the optimizer, and build a new one from "
        "noble_fx.param_groups(model, ...)"
    )
