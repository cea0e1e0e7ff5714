"""A whole copy of a model, of one whose layers hold what they computed last as well."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from noble_fx.errors import ConfigError, NobleError, printable


def deep_copy(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """A deep copy with `memo`'s stand-ins by identity; raises whatever the copying of the user's own parts raises.

    PyTorch copies no tensor that was computed, and a pruned or weight-normed layer keeps one, its weight of the
    last call.
    """
    for module in model.modules():
        computed = [value for value in vars(module).values() if isinstance(value, Tensor) and not value.is_leaf]
        memo |= {id(tensor): tensor.detach().clone() for tensor in computed}
    return copy.deepcopy(model, memo)


def copied_for(model: nn.Module, verb: str) -> nn.Module:
    """A deep copy for a verb whose result is one; raises `ConfigError` where the user's own parts cannot be copied."""
    try:
        return deep_copy(model, {})
    except NobleError:  # what a captured model says
        raise
    except Exception as error:
        cause = printable(str(error).partition("\n")[0])
        raise ConfigError(
            f"the model cannot be copied, and {verb} gives a copy: {type(error).__name__}: {cause}"
        ) from error
