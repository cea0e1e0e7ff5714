"""Layers with linear maps inside that no branch can reach, each with the reason."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from noble_fx.branches.base import Branch
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


def _unknown(layer: Any) -> Refusal:
    name, weight = plain_class(layer).__qualname__, getattr(layer, "weight", None)
    if callable(weight) and not isinstance(weight, Tensor):
        return Refusal("quantized: its weight is packed")  # in a method that unpacks it, as in torch.ao
    if not isinstance(weight, Tensor):
        return Refusal(f"{name} is no known class of linear layer, and has no weight but packed ones")
    return Refusal(f"{name} is no known class of linear layer; noble_fx.register_layer makes it one")


def says_its_widths(layer: Any) -> bool:
    """True for a layer that has `in_features`, `out_features` and a matrix of its own, packed or not."""
    widths = [getattr(layer, name, None) for name in ("in_features", "out_features")]
    if not all(isinstance(width, int) for width in widths) or isinstance(layer, Branch):
        return False
    tensors = (*layer._parameters.values(), *layer._buffers.values())
    matrix = any(tensor is not None and tensor.ndim > 1 for tensor in tensors)
    return _is_packed(layer) or (matrix and next(layer.children(), None) is None)


def _is_packed(layer: Any) -> bool:
    weight = getattr(layer, "weight", None)
    return callable(weight) and not isinstance(weight, Tensor)


# Linear layers of other libraries share no class; what they share is that they say how wide they are.
UNKNOWN = LayerRow(
    nn.Module,
    lambda layer: (int(layer.in_features), int(layer.out_features)),
    None,
    title=lambda layer: f"{'quantized ' * _is_packed(layer)}{plain_class(layer).__name__}",
    obstacle=_unknown,
    recognises=says_its_widths,
)
FAMILIES = (UNKNOWN,)
