"""Adapters that another library put into the model: the matrices of LoRA and its kin are no maps of the model itself.

peft keeps what it wrapped in `base_layer` (a layer), `model` (the whole model) or `original_module` (a copy); all else
that its tuners hold is an adapter of some kind, today's and tomorrow's. Elsewhere the matrices are known by the name
that all implementations give them.
"""

from __future__ import annotations

import re

from torch import nn

from noble_fx.errors import Refusal

_WRAPPED = {"base_layer", "model", "original_module"}
_MATRIX = re.compile(r"lora_?([ab]|up|down|magnitude|embedding)(_\w+)?|lora_linear_layer", re.IGNORECASE)


def why_adapter(model: nn.Module, fqn: str) -> Refusal | None:
    """That the map called `fqn` belongs to an adapter, with the class that holds it; None for a map of the model."""
    holder = model
    for name in fqn.split("."):
        if (_is_tuner(holder) and name not in _WRAPPED) or _MATRIX.fullmatch(name):
            library, kind = type(holder).__module__.split(".")[0], type(holder).__qualname__
            return Refusal(f"{name} of {library}'s {kind}: an adapter, not a map of the model itself")
        holder = getattr(holder, name, holder)
    return Refusal(f"peft's {type(holder).__qualname__}, which wraps the map itself") if _is_tuner(holder) else None


def _is_tuner(module: nn.Module) -> bool:
    return f"{type(module).__module__}.".startswith("peft.tuners.")
