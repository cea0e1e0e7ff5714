"""What a backward keeps of each row: h of every fused site, and x where W or D learns (`ops/frozen.py` says why)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from noble_fx.branches.base import Branch


def told_kept(fused: Iterable[tuple[Any, Branch]]) -> str:
    """In words, for (weight, branch) of each fused site; "" where nothing learns."""
    sites, with_x, total = 0, 0, 0
    for weight, branch in fused:
        downs = branch.bound.downs() if branch.bound is not None else []
        needs_x = any(tensor.requires_grad for tensor in (weight, *downs))
        if needs_x or any(parameter.requires_grad for parameter in branch.parameters()):
            h = branch.width * torch.promote_types(branch.dtype, torch.float32).itemsize
            x = branch.in_features * branch.dtype.itemsize * needs_x
            sites, with_x, total = sites + 1, with_x + needs_x, total + h + x
    return f"{total:,} bytes a row at {sites} fused sites: h, and x at {with_x} of them" if sites else ""
