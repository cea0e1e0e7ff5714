"""A layer whose W has another form: a mixin in front of the layer's own class, as for a branch.

    y = x Wᵀ + b   ->   y = base(x, b)          W = base.merged()

`layer.weight` still answers with W, computed in each call, for code that reads it; nothing can be written to it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from noble_fx.bases.base import Base
from noble_fx.distributed import is_distributed
from noble_fx.errors import CaptureError
from noble_fx.layers.base import plain_class
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

    @property
    def weight_shape(self) -> tuple[int, int]:
        """That of `weight`, without making it."""
        return self.base.out_features, self.base.in_features

    def reset_parameters(self) -> None:
        """Draw W and b as the layer's class does, and take the nearest form of that W.

        Where it cannot, W has no values yet and `noble_fx.reset_parameters` draws it; else raises `CaptureError`.
        """
        plain: Any = plain_class(self)  # type: ignore[arg-type]
        if not hasattr(plain, "reset_parameters") or any(map(is_distributed, self.base.parameters())):
            if not self.base.lacks_values:
                raise CaptureError(
                    f"a {plain.__name__} whose W is {self.base.kind} cannot draw it anew where it stands: it is spread "
                    "over ranks, or its class does not say how"
                )
            return
        drawn = object.__new__(plain)
        like = next(self.base.parameters())
        weight = nn.Parameter(torch.empty(self.weight_shape, dtype=like.dtype, device=like.device))
        parts = {"weight": weight, "bias": self.bias}
        vars(drawn).update({**vars(self), "_parameters": parts, "_modules": {}})
        drawn.reset_parameters()
        self.base.draw()
        self.base.fill(self.laid_out(weight.detach()))
        self.base.lacks_values = False

    @staticmethod
    def laid_out(matrix: Tensor) -> Tensor:
        """W [N, K] as the layer's class has it, and back."""
        return matrix


class StructuredTransposed(Structured):
    """The same for a class whose weight is [K, N]."""

    @property
    def weight_shape(self) -> tuple[int, int]:
        return self.base.in_features, self.base.out_features

    @staticmethod
    def laid_out(matrix: Tensor) -> Tensor:
        return matrix.t()
