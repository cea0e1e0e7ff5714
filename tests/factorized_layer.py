"""A layer whose W is A B, with its branch: what the tests of its operator and its kernels share."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from noble_fx import NobleLinear
from noble_fx.bases.low_rank import LowRank
from noble_fx.layers.restructure import structure
from tests.fused_layer import layer_of


def factorized_layer(
    act: str = "cosnet",
    in_features: int = 9,
    out_features: int = 7,
    rank: int = 4,
    base_rank: int = 5,
    **settings: object,
) -> NobleLinear:
    """`layer_of` with the best W of rank `base_rank` in the place of its own."""
    layer = layer_of(act, in_features, out_features, rank, **settings)
    base_rank = min(base_rank, in_features, out_features)
    base = LowRank(in_features, out_features, base_rank)
    base.fill(layer.weight)
    structure(layer, base, layer.bias)
    return layer


def arguments(layer: Any, x: Tensor) -> list[Any]:
    """The arguments of `noble_fx::factorized_linear`."""
    noble, base = layer.noble, layer.base
    matrices = x, base.down, base.up, layer.bias, noble.down, noble.down_bias, noble.up
    return [*matrices, noble.act_tensors(), noble.key]
