"""Which layer classes can carry a branch, by exact class, and which linear maps cannot, with the reason."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from noble_fx.layers.linear import Augmented

# Exact classes: a subclass may have its own forward. By name, so that transformers is imported by its users alone.
_AUGMENTED = {
    "torch.nn.modules.linear.Linear": ("noble_fx.layers.linear", "NobleLinear"),
    "transformers.pytorch_utils.Conv1D": ("noble_fx.layers.conv1d", "NobleConv1D"),
    "torch.nn.modules.linear.NonDynamicallyQuantizableLinear": ("noble_fx.layers.attention", "NobleOutProjection"),
    "torch.nn.modules.activation.MultiheadAttention": ("noble_fx.layers.attention", "NobleMultiheadAttention"),
    "torch.nn.modules.conv.Conv1d": ("noble_fx.layers.convolution", "NobleConv1d"),
    "torch.nn.modules.conv.Conv2d": ("noble_fx.layers.convolution", "NobleConv2d"),
    "torch.nn.modules.conv.Conv3d": ("noble_fx.layers.convolution", "NobleConv3d"),
}
_CONVOLUTIONS = nn.Conv1d | nn.Conv2d | nn.Conv3d

_OPAQUE: dict[type, str] = {
    nn.RNNBase: "recurrent: its products lie inside one opaque operator, where no branch can be added",
    nn.RNNCellBase: "recurrent: its products lie inside one opaque operator, where no branch can be added",
    nn.Bilinear: "bilinear in two inputs, not a linear map of one",
}


def augmented_class(layer: nn.Module) -> type[Augmented] | None:
    """The class with a branch for this layer, or None; the augmented classes themselves count as their plain one."""
    if isinstance(layer, Augmented):
        return type(layer)
    where = _AUGMENTED.get(f"{type(layer).__module__}.{type(layer).__qualname__}")
    return getattr(importlib.import_module(where[0]), where[1]) if where else None


def plain_class(layer: nn.Module) -> type[nn.Module]:
    """The class that the layer had before it got a branch."""
    if not isinstance(layer, Augmented):
        return type(layer)
    return next(base for base in type(layer).__mro__ if issubclass(base, nn.Module) and not issubclass(base, Augmented))


def describe(layer: nn.Module) -> tuple[str, int, int] | None:
    """(kind, K, N) of a module that holds a linear map, else None."""
    kind = plain_class(layer).__name__
    if isinstance(layer, nn.Linear):
        return kind, layer.in_features, layer.out_features
    if isinstance(layer, _CONVOLUTIONS):
        one_by_one = set(layer.kernel_size) == {1} and layer.groups == 1
        return (f"1x1 {kind}", layer.in_channels, layer.out_channels) if one_by_one else None
    if isinstance(layer, nn.MultiheadAttention):
        return None  # its projections are listed, each on its own
    if augmented_class(layer) is not None:  # GPT-2's Conv1D, whose weight is [K, N]
        weight: Any = layer.weight
        return kind, int(weight.shape[0]), int(weight.shape[1])
    if isinstance(layer, nn.RNNBase | nn.RNNCellBase):
        return kind, layer.input_size, layer.hidden_size
    if isinstance(layer, nn.Bilinear):
        return kind, layer.in1_features, layer.out_features
    if callable(getattr(layer, "weight", None)) and hasattr(layer, "in_features"):  # quantized: packed, in no nn.Linear
        sizes: Any = layer
        return f"quantized {kind}", int(sizes.in_features), int(sizes.out_features)
    return None


def obstacle(layer: nn.Module) -> str:
    """Why this layer cannot carry a branch; empty when it can."""
    for kind, reason in _OPAQUE.items():
        if isinstance(layer, kind):
            return reason
    if isinstance(layer, _CONVOLUTIONS) and (isinstance(layer.padding, str) or any(layer.padding)):
        return "a 1x1 convolution with padding, which adds positions of its own"
    if augmented_class(layer) is None:
        name = f"{type(layer).__module__}.{type(layer).__qualname__}"
        if isinstance(getattr(layer, "weight", None), UninitializedParameter):
            return f"{name} is lazy and has no shape yet; run one batch through the model first"
        base = "nn.Linear" if isinstance(layer, nn.Linear) else "its torch class"
        return f"{name} is a subclass of {base}, which may have a forward of its own"
    if "forward" in vars(layer):
        return "its forward was replaced on the instance (an accelerate hook?); transform before that"
    if not isinstance(layer, Augmented) and hasattr(layer, "noble"):
        return "it already has an attribute named 'noble'"
    return ""


def unsuitable_weight(layer: nn.Module) -> str:
    """Why a branch beside this weight would be a mistake (quantized, integer); empty when it is fine."""
    weight: Any = getattr(layer, "weight", None)
    if not isinstance(weight, torch.Tensor):
        return "quantized: its weight is packed" if callable(weight) else ""
    if weight.is_quantized:
        return f"quantized ({weight.dtype})"
    if not weight.is_floating_point():
        return f"of dtype {weight.dtype}, not floating point"
    if type(weight.data) is not torch.Tensor and "quant" in type(weight.data).__name__.lower():
        return f"quantized ({type(weight.data).__name__})"
    return ""
