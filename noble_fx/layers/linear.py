"""The eager layer: a linear layer that carries a branch in `noble`, and adds it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from noble_fx.branches.noble import NobleBranch
from noble_fx.config import NobleConfig
from noble_fx.schema import LINEAR


class Augmented:
    """What every linear layer with a branch shares: `noble`, and a forward that adds it.

    A mixin in front of the layer's own class, so that `isinstance`, parameter names and attributes stay what they were.
    """

    noble: NobleBranch

    def matrix(self) -> Tensor:
        """W as [N, K], a view of the layer's weight."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        branch = self.noble
        if not branch.enabled:
            return super().forward(x)  # type: ignore[misc]
        if branch.unfused:
            return super().forward(x) + branch(x)  # type: ignore[misc]
        return LINEAR(
            x,
            self.matrix(),
            branch.with_bias(self.bias),  # type: ignore[attr-defined]
            branch.down,
            branch.down_bias,
            branch.up,
            branch.act_tensors(),
            branch.key,
        )


class NobleLinear(Augmented, nn.Linear):
    """An `nn.Linear` with a branch in `noble`; made by `transform`, or by hand with `NobleLinear.build`."""

    def matrix(self) -> Tensor:
        """W [N, K], the weight itself."""
        return self.weight

    @classmethod
    def build(cls, in_features: int, out_features: int, rank: int, bias: bool = True, **settings: Any) -> NobleLinear:
        """A fresh layer for hand-written models: `NobleLinear.build(512, 2048, rank=64, act="cosnet")`."""
        layer = cls(in_features, out_features, bias=bias)
        layer.noble = NobleBranch(in_features, out_features, rank, NobleConfig(rank=rank).replace(**settings))
        return layer
