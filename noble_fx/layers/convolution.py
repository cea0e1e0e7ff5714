"""1×1 convolutions with a branch: a linear map of the channels at every position."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from noble_fx.errors import Refusal
from noble_fx.layers.base import Augmented, LayerRow, plain_class

EAGER = "a 1x1 convolution, whose channels are not the last dimension"


def branch_over_channels(branch: Any, x: Tensor, stride: tuple[int, ...], rows: slice | None = None) -> Tensor:
    """branch [.., K] -> [.., N] on x [B, K, *positions] or [K, *positions]: every `stride`-th position, N channels."""
    if any(step != 1 for step in stride):
        every: Any = (..., *(slice(None, None, step) for step in stride))
        x = x[every]
    axis = -1 - len(stride)
    out: Tensor = branch(x.movedim(axis, -1), rows)
    return out.movedim(-1, axis)


class OverChannels(Augmented):
    """A 1×1 convolution with a branch."""

    stride: tuple[int, ...]

    def branch_output(self, x: Tensor) -> Tensor:
        """The branch of every position, [B, N, *positions]."""
        return branch_over_channels(self.noble, x, self.stride)


def _shape(layer: Any) -> tuple[int, int] | None:
    """(K, N) of a 1×1 convolution; one that only scales its channels is no map of several."""
    one_by_one = set(layer.kernel_size) == {1} and layer.in_channels > layer.groups
    return (layer.in_channels, layer.out_channels) if one_by_one else None


def _obstacle(layer: Any) -> Refusal | None:
    if layer.groups != 1:
        return Refusal(f"a 1x1 convolution in {layer.groups} groups, which is a map for each group of channels")
    if layer.transposed:
        return Refusal("a transposed 1x1 convolution, which no class here carries a branch for")
    if not isinstance(layer.padding, str) and any(layer.padding):  # "same" and "valid" pad nothing around 1×1
        return Refusal("a 1x1 convolution with padding, which adds positions of its own")
    return None


ROWS = tuple(
    LayerRow(
        kind,
        shape=_shape,
        mixin=OverChannels if kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d) else None,
        layout="[N, K, 1]",
        title=lambda layer: f"1x1 {plain_class(layer).__name__}",
        obstacle=_obstacle,
        eager=lambda layer: Refusal(EAGER),
        beside=False,  # which axis holds the channels of a subclass's input, nobody knows
    )
    for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
)
