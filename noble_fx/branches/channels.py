"""Which entries of a branch's tensors belong to which channel, so that it can change its rank channel by channel.

    D [r, K]      rows make the channels of space 0                       (Made(0), None)
    M [k r, r]    columns take those of one space, rows make the next     (Made(1, blocks=k), Taken(0))
    U [N, r]      columns take those of the last                          (None, Taken(1))
    ω, φ, s [r]   one entry a channel                                     (Made(0),)

A space lies between two matrices, and channels may be kept in each on their own. k blocks of r rows, as a gate has
them, are k entries of a channel: i, r + i, 2r + i, …
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Axis:
    """An axis of `blocks` × r entries: those of the channels of one space, which it makes or (`taken`) reads."""

    space: int
    taken: bool
    blocks: int = 1


Axes = tuple[Axis | None, ...]  # of one tensor; None for an axis that the rank says nothing of


@dataclass(frozen=True)
class Kept:
    """The channels that a branch of another rank keeps: `channels[space]` [k] of `before` become 0..k-1 of `after`."""

    before: int
    after: int
    channels: Mapping[int, Tensor]

    def places(self, axis: Axis) -> tuple[Tensor, Tensor]:
        """Where the entries of the kept channels were along this axis, and where they are."""
        old = self.channels[axis.space]
        blocks, new = torch.arange(axis.blocks).unsqueeze(1), torch.arange(len(old))
        return (blocks * self.before + old).reshape(-1), (blocks * self.after + new).reshape(-1)

    def carry(self, old: Tensor, new: Tensor, axes: Axes) -> Tensor:
        """`new` with the entries of `old` that are kept, in place; what it had there is written over."""
        pairs = [
            (every := torch.arange(size), every) if axis is None else self.places(axis)
            for axis, size in zip(axes, new.shape, strict=True)
        ]
        sources, targets = (_grid([pair[side] for pair in pairs], new.device) for side in (0, 1))
        new[targets] = old.detach()[sources].to(new.dtype)
        return new

    def unseen(self, new: Tensor, axes: Axes) -> Tensor:
        """`new` with zeros where a kept channel, or the result, would read a new one; in place."""
        taken = [at for at, axis in enumerate(axes) if axis is not None and axis.taken]
        for at in taken:
            fresh = torch.ones(new.shape[at], dtype=torch.bool)
            fresh[self.places(axes[at])[1]] = False  # type: ignore[arg-type]
            rows = [torch.arange(size) for size in new.shape]
            rows[at] = fresh.nonzero().squeeze(1)
            for other, axis in enumerate(axes):
                if axis is not None and not axis.taken:
                    rows[other] = self.places(axis)[1]
            new[_grid(rows, new.device)] = 0
        return new


@dataclass(frozen=True)
class Resized:
    """A branch of another rank, which of the old channels it keeps, and how far off it is where it was measured."""

    branch: Any
    axes: dict[str, Axes]  # by the name of a tensor, of parameters and buffers
    kept: Kept
    error: float = 0.0  # of its result, over the result of the old branch


def _grid(indices: list[Tensor], device: torch.device) -> tuple[Tensor, ...]:
    """Indices along each axis as ones that broadcast to all combinations."""
    count = len(indices)
    return tuple(
        index.to(device).reshape([-1 if at == place else 1 for place in range(count)])
        for at, index in enumerate(indices)
    )
