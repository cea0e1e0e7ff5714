"""GPT-2's `Conv1D` with a branch. Imported only where a model uses it, because it needs transformers."""

from __future__ import annotations

from torch import Tensor
from transformers.pytorch_utils import Conv1D

from noble_fx.layers.linear import Augmented


class NobleConv1D(Augmented, Conv1D):
    """A transformers `Conv1D` (weight [K, N], y = x W + b) with a branch in `noble`."""

    def matrix(self) -> Tensor:
        """W as [N, K], a transposed view of the weight."""
        return self.weight.t()
