"""Norms of tensors, sharded ones as a whole, and scalars read from their devices all at once."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from noble_fx.distributed import whole


def norm(parts: Iterable[Tensor]) -> Tensor:
    """√Σ|part|² over all ranks, in float32 or better."""
    norms = [_norm(piece) for part in parts for piece in (part.unbind() if part.is_nested else (part,))]
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))


def _norm(tensor: Tensor) -> Tensor:
    dtype = torch.promote_types(tensor.dtype, torch.float32)
    return whole(torch.linalg.vector_norm(tensor.detach(), dtype=dtype))


def floats(scalars: Iterable[Tensor]) -> list[float]:
    """Scalars of any devices as numbers; each device is waited for once."""
    scalars = list(scalars)
    result = [0.0] * len(scalars)
    by_kind: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for i, scalar in enumerate(scalars):
        by_kind.setdefault((scalar.device, scalar.dtype), []).append(i)
    for places in by_kind.values():
        for i, value in zip(places, torch.stack([scalars[i] for i in places]).tolist(), strict=True):
            result[i] = value
    return result
