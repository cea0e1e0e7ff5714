"""What a backward keeps of each row: h of every fused site, and x where W or D learns (`ops/frozen.py` says why).

Beside a factorized W also z, its own bottleneck.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from noble_fx.branches.base import Branch
from noble_fx.layers.structured import Structured


def told_kept(fused: Iterable[tuple[Any, Branch]]) -> str:
    """In words, for (layer, branch) of each fused site; "" where nothing learns."""
    sites, with_x, total = 0, 0, 0
    for layer, branch in fused:
        base = layer.base if isinstance(layer, Structured) else None
        first = layer._parameters.get("weight") if base is None else base.down
        learning = base is not None and any(parameter.requires_grad for parameter in base.parameters())
        downs = branch.bound.downs() if branch.bound is not None else []
        needs_x = any(tensor.requires_grad for tensor in (first, *downs) if tensor is not None)
        if needs_x or learning or any(parameter.requires_grad for parameter in branch.parameters()):
            h = branch.width * torch.promote_types(branch.dtype, torch.float32).itemsize
            x = branch.in_features * branch.dtype.itemsize * needs_x
            z = 0 if base is None else base.rank * branch.dtype.itemsize
            sites, with_x, total = sites + 1, with_x + needs_x, total + h + x + z
    return f"{total:,} bytes a row at {sites} fused sites: h, and x at {with_x} of them" if sites else ""
