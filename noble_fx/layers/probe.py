"""Whether a forward that nobody here wrote is a map of its input's last dimension: it is run, without values.

A subclass of `nn.Linear` may do anything: return a tuple (routers), group its features, append outputs. A branch beside
it is right only where x [.., K] becomes y [.., N].
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from noble_fx.errors import Refusal
from noble_fx.random_states import random_states_kept


def why_no_map(layer: nn.Module, in_features: int, out_features: int) -> Refusal | None:
    """Why `layer` is no map [.., K] -> [.., N], found by running a copy of it on the meta device."""
    weight: Any = getattr(layer, "weight", None)
    dtype = weight.dtype if isinstance(weight, Tensor) else torch.float32
    name = type(layer).__qualname__
    try:
        with torch.no_grad(), random_states_kept():
            y = _on_meta(layer).forward(torch.empty(2, 3, in_features, dtype=dtype, device="meta"))
    except Exception as error:
        cause = str(error).strip().splitlines()[:1]
        return Refusal(
            f"{name} has a forward of its own, which does not take [2, 3, {in_features}]: {type(error).__name__}"
            f"{': ' + cause[0] if cause else ''}"
        )
    if isinstance(y, Tensor) and tuple(y.shape) == (2, 3, out_features):
        return None
    got = list(y.shape) if isinstance(y, Tensor) else f"a {type(y).__name__}"
    return Refusal(
        f"{name} has a forward of its own, which makes {got} of [2, 3, {in_features}], not [2, 3, {out_features}]"
    )


def _on_meta(layer: nn.Module) -> Any:
    """A copy whose tensors have no values; hooks stay behind, because only its `forward` is called."""
    memo: dict[int, Any] = {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in layer.parameters()}
    memo |= {id(b): b.detach().to("meta") for b in layer.buffers()}
    return copy.deepcopy(layer, memo)
