"""A layer whose W has another form: a mixin in front of the layer's own class, as for a branch.

    y = x Wᵀ + b   ->   y = base(x, b)          W = base.merged()

`layer.weight` still answers with W, computed in each call, for code that reads it; nothing can be written to it.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from noble_fx.bases.base import Base
from noble_fx.errors import CaptureError
from noble_fx.layers.made_class import Made


class Structured(Made):
    """A layer whose W is what `base` says; b stays in `bias`."""

    base: Base
    bias: Tensor | None
    _prefix = "Structured"

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        if len(args) + len(kwargs) != 1:
            raise CaptureError(f"{type(self).__name__} takes one tensor, not {len(args) + len(kwargs)}")
        y: Tensor = self.base(args[0] if args else kwargs[self._input_name], self.bias)
        return y

    @property
    def weight(self) -> Tensor:
        """W as the layer's class lays it out, made of its parts in each call."""
        return self.laid_out(self.base.merged())

    @staticmethod
    def laid_out(matrix: Tensor) -> Tensor:
        """W [N, K] as the layer's class has it."""
        return matrix


class StructuredTransposed(Structured):
    """The same for a class whose weight is [K, N]."""

    @staticmethod
    def laid_out(matrix: Tensor) -> Tensor:
        return matrix.t()
