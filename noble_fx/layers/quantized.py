"""Layers whose weight another library quantized: their product is that library's, and the branch runs beside it.

    y = x Q(W)ᵀ + b + σ(x Dᵀ) Uᵀ        W stays as it was quantized; the branch has the dtype of what goes in

torchao puts tensors of its own classes into the layers that are there, before `transform` or after; bitsandbytes has
layers of its own. Classes are known by package and name, so nothing is imported for a model that has none of them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from noble_fx.bases.base import Base
from noble_fx.layers.base import LayerRow
from noble_fx.random_states import random_states_kept

_FLOATING = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_TRAINED = ("WeightWithDynamicFloat8CastTensor",)  # torchao's of float8 training under FSDP2, whose values learn


ROWS = tuple(
    LayerRow(f"bitsandbytes.nn.modules.{name}", lambda layer: (layer.in_features, layer.out_features))
    for name in ("Linear4bit", "Linear8bitLt")
)
_LAYERS = frozenset(str(row.cls) for row in ROWS)


def foreign(weight: Any) -> str:
    """What a library's own weight is called, "torchao's Int8Tensor"; "" for any other tensor."""
    for cls in type(weight).__mro__:
        library = cls.__module__.partition(".")[0]
        if library in ("torchao", "bitsandbytes"):
            return f"{library}'{'' if library.endswith('s') else 's'} {type(weight).__qualname__}"
    return ""


def is_frozen(weight: Any) -> bool:
    """Whether the values of this weight are quantized for good, so that it cannot learn."""
    return bool(foreign(weight)) and type(weight).__qualname__ not in _TRAINED


def runs_beside(layer: Any) -> bool:
    """Whether a branch is right beside the product of this layer's weight, which is no plain tensor.

    A layer of bitsandbytes is known. With a tensor of torchao's the product is run: x [2, K] must become [2, N].
    """
    weight = layer._parameters.get("weight")
    if not foreign(weight):
        return False
    if any(f"{cls.__module__}.{cls.__qualname__}" in _LAYERS for cls in type(layer).__mro__):
        return True
    if not isinstance(layer, nn.Linear) or not weight.is_floating_point():
        return False
    k, n = layer.in_features, layer.out_features
    try:
        with torch.no_grad(), random_states_kept():
            y = F.linear(torch.zeros(2, k, dtype=weight.dtype, device=weight.device), weight)
    except Exception:  # whatever that library has against it
        return False
    return tuple(weight.shape) == (n, k) and tuple(y.shape) == (2, n)


def base_runs(base: Base) -> bool:
    """Whether a base some of whose parameters are a library's own is run by that library: x [2, K] becomes [2, N]."""
    if not any(foreign(parameter) for parameter in base.parameters()):
        return False
    try:
        with torch.no_grad(), random_states_kept():
            y = base(torch.zeros(2, base.in_features, dtype=base.dtype, device=next(base.parameters()).device))
    except Exception:  # whatever that library has against it
        return False
    return tuple(y.shape) == (2, base.out_features)


def is_over(weight: Any, plain: Tensor) -> bool:
    """Whether `weight` is a tensor of torchao's over the very values of `plain`, which still learn."""
    return type(weight).__qualname__ in _TRAINED and getattr(weight, "_tensor", None) is plain


def is_converted(kind: type, weight: Tensor, theirs: Any) -> bool:
    """Whether `theirs` is what torchao makes of the weight of its own `kind` of layer once it has learned (QAT)."""
    made = kind.__module__.startswith("torchao.") and is_frozen(theirs)
    return bool(made and theirs.shape == weight.shape)


def computing_dtype(model: nn.Module, layer: Any, weight: Tensor) -> torch.dtype:
    """The dtype for a branch beside `weight`: its own; where that is packed, the one that it was quantized from."""
    known = [weight, getattr(weight, "quant_state", None), getattr(layer, "bias", None), *model.parameters()]
    dtypes = (getattr(one, "dtype", None) for one in known)
    return next((dtype for dtype in dtypes if dtype in _FLOATING), torch.get_default_dtype())
