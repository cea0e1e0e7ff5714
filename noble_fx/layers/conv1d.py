"""GPT-2's `Conv1D` with a branch: a linear map whose weight is [K, N], y = x W + b."""

from __future__ import annotations

from torch import Tensor

from noble_fx.layers.base import Augmented, LayerRow


class Transposed(Augmented):
    """A layer with a branch whose weight is [K, N]."""

    @staticmethod
    def matrix(weight: Tensor) -> Tensor:
        """W as [N, K], a transposed view of the weight."""
        return weight.t()


ROWS = (
    LayerRow(
        "transformers.pytorch_utils.Conv1D",  # imported by its users alone
        shape=lambda layer: (int(layer.weight.shape[0]), int(layer.weight.shape[1])),
        mixin=Transposed,
        layout="[K, N]",
    ),
)
