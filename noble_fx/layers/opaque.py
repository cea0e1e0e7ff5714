"""Layers with linear maps inside that no branch can reach, each with the reason."""

from __future__ import annotations

from typing import Any

from torch import nn

from noble_fx.errors import Refusal
from noble_fx.layers.base import LayerRow, plain_class


def _refused(reason: str) -> Any:
    return lambda layer: Refusal(reason)


_RECURRENT = _refused("recurrent: its products lie inside one opaque operator, where no branch can be added")

ROWS = (
    LayerRow(nn.RNNBase, lambda layer: (layer.input_size, layer.hidden_size), None, obstacle=_RECURRENT),
    LayerRow(nn.RNNCellBase, lambda layer: (layer.input_size, layer.hidden_size), None, obstacle=_RECURRENT),
    LayerRow(
        nn.Bilinear,
        lambda layer: (layer.in1_features, layer.out_features),
        None,
        obstacle=_refused("bilinear in two inputs, not a linear map of one"),
    ),
)

# Quantized layers of torch.ao share no class; what they share is a `weight()` that unpacks.
PACKED = LayerRow(
    nn.Module,
    lambda layer: (int(layer.in_features), int(layer.out_features)),
    None,
    title=lambda layer: f"quantized {plain_class(layer).__name__}",
    obstacle=_refused("quantized: its weight is packed"),
)


def is_packed(layer: Any) -> bool:
    """True for a layer whose weight is a method."""
    return callable(getattr(layer, "weight", None)) and hasattr(layer, "in_features")
