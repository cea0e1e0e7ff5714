"""`nn.Linear` with a branch."""

from __future__ import annotations

from typing import Any

from torch import nn

from noble_fx.branches.kinds import branch_class
from noble_fx.config import NobleConfig
from noble_fx.layers.base import Augmented, LayerRow
from noble_fx.layers.made_class import named_class


@named_class(Augmented, nn.Linear)
class NobleLinear(Augmented, nn.Linear):
    """An `nn.Linear` with a branch in `noble`; made by `transform`, or by hand with `NobleLinear.build`."""

    @classmethod
    def build(cls, in_features: int, out_features: int, rank: int, bias: bool = True, **settings: Any) -> NobleLinear:
        """A fresh layer for hand-written models: `NobleLinear.build(512, 2048, rank=64, act="cosnet")`."""
        layer = cls(in_features, out_features, bias=bias)
        config = NobleConfig(rank=rank).replace(**settings)
        layer.noble = branch_class(config)(in_features, out_features, rank, config)
        layer.noble.prepare("" if config.fuse else "fuse=False")
        return layer


ROWS = (LayerRow(nn.Linear, shape=lambda layer: (layer.in_features, layer.out_features)),)
