"""1×1 convolutions with a branch: a linear map of the channels at every position."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from noble_fx.branches.noble import NobleBranch
from noble_fx.layers.linear import Augmented


def branch_over_channels(branch: NobleBranch, x: Tensor, stride: tuple[int, ...], rows: slice | None = None) -> Tensor:
    """branch [.., K] -> [.., N] on x [B, K, *positions] or [K, *positions]: every `stride`-th position, N channels."""
    if any(step != 1 for step in stride):
        every: Any = (..., *(slice(None, None, step) for step in stride))
        x = x[every]
    axis = -1 - len(stride)
    return branch(x.movedim(axis, -1), rows).movedim(-1, axis)


class _NobleConv(Augmented):
    stride: tuple[int, ...]

    def matrix(self) -> Tensor:
        """W as [N, K], a view of the kernel [N, K, 1, ..]."""
        weight: Any = self.weight  # type: ignore[attr-defined]
        return weight.flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        y = super(Augmented, self).forward(x)  # type: ignore[misc]
        return y + branch_over_channels(self.noble, x, self.stride) if self.noble.enabled else y


class NobleConv1d(_NobleConv, nn.Conv1d):
    """A 1×1 `nn.Conv1d` with a branch in `noble`."""


class NobleConv2d(_NobleConv, nn.Conv2d):
    """A 1×1 `nn.Conv2d` with a branch in `noble`."""


class NobleConv3d(_NobleConv, nn.Conv3d):
    """A 1×1 `nn.Conv3d` with a branch in `noble`."""
