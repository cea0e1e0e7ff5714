"""Which layer classes may carry a branch: one row a class, built in or registered by a user.

A row counts for subclasses too. One that has a forward of its own gets its branch beside whatever that computes; the
operator takes the place of the class's own forward alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize

from noble_fx.bases.low_rank import LowRank
from noble_fx.errors import ConfigError, Refusal
from noble_fx.layers import attention, conv1d, convolution, experts, linear, opaque, quantized
from noble_fx.layers.base import Augmented, LayerRow, class_with_branch, plain_class
from noble_fx.layers.conv1d import Transposed
from noble_fx.layers.probe import why_no_map
from noble_fx.layers.structured import Structured
from noble_fx.layers.weights import why_unsuitable

_MIXINS = {"[N, K]": Augmented, "[K, N]": Transposed}
_ROWS: dict[type | str, LayerRow] = {
    row.cls: row for file in (linear, conv1d, convolution, attention, experts, quantized, opaque) for row in file.ROWS
}
_FAMILIES = (*experts.FAMILIES, *opaque.FAMILIES)


def register_layer(
    cls: type[nn.Module],
    *,
    shape: Callable[[Any], tuple[int, int]] = lambda layer: (layer.in_features, layer.out_features),
    layout: str = "[N, K]",
    obstacle: Callable[[Any], Refusal | None] = lambda layer: None,
    fused: bool = False,
) -> None:
    """Let layers of class `cls` carry a branch; a second call replaces the first.

    `shape(layer)` gives (K, N); `layout` says which axis of `layer.weight` is which, "[N, K]" or "[K, N]";
    `obstacle(layer)` may refuse one with `Refusal(reason)`. `fused=True` says that `cls.forward(x)` is x Wᵀ + b and
    nothing else, with b in `layer.bias` (or None): the operator then runs in its place. Raises `ConfigError`.
    """
    if not isinstance(cls, type) or not issubclass(cls, nn.Module):
        raise ConfigError(f"register_layer takes a class of nn.Module, not {cls!r}")
    if layout not in _MIXINS:
        raise ConfigError(f"layout={layout!r} of {cls.__qualname__} is unknown; use {' or '.join(map(repr, _MIXINS))}")
    for name, function in (("shape", shape), ("obstacle", obstacle)):
        if not callable(function):
            raise ConfigError(f"{name}={function!r} of {cls.__qualname__} must be a function of a layer")
    computes = Refusal("registered without fused=True: what it computes is its own")
    _ROWS[cls] = LayerRow(
        cls,
        shape,
        _MIXINS[layout],
        layout,
        obstacle=obstacle,
        eager=lambda layer: None if fused else computes,
        registered=True,
    )


def row_of(layer: nn.Module) -> LayerRow | None:
    """What is known of the layer's class, or of the nearest class that it is a subclass of."""
    for cls in type(layer).__mro__:
        row = _ROWS.get(cls) or _ROWS.get(f"{cls.__module__}.{cls.__qualname__}")
        if row is not None:
            return row
    return next((row for row in _FAMILIES if row.recognises is not None and row.recognises(layer)), None)


def augmented_class(layer: nn.Module) -> type[Augmented] | None:
    """The class with a branch for this layer, or None."""
    if isinstance(layer, Augmented):
        return type(layer)
    row = row_of(layer)
    return class_with_branch(row.mixin, type(layer)) if row is not None and row.mixin is not None else None


def describe(layer: nn.Module) -> tuple[str, int, int] | None:
    """(kind, K, N) of a module that holds a linear map, else None; raises `ConfigError` where a user's row lies."""
    row = row_of(layer)
    shape = _shape(layer, row) if row is not None else None
    if row is None or shape is None:
        return None
    if row.registered and not isinstance(layer, Structured) and (wrong := _misfit(layer, row, shape)):
        raise ConfigError(
            f"the row that was registered for {plain_class(layer).__qualname__} {wrong}; correct its shape or layout"
        )
    return row.title(layer), *shape


def _shape(layer: nn.Module, row: LayerRow) -> Any:
    if isinstance(layer, Structured):
        return layer.base.in_features, layer.base.out_features
    try:
        return row.shape(layer)
    except Exception as error:
        if not row.registered:
            raise
        raise ConfigError(
            f"the row that was registered for {plain_class(layer).__qualname__} fails in its shape: "
            f"{type(error).__name__}: {error}; give register_layer a shape=… that says (K, N)"
        ) from error


def _misfit(layer: Any, row: LayerRow, shape: Any) -> str:
    weight = getattr(layer, "weight", None)
    if not isinstance(shape, tuple) or len(shape) != 2 or not all(isinstance(size, int) and size > 0 for size in shape):
        return f"gives {shape!r} as its shape, where (K, N) belongs"
    if not isinstance(weight, torch.Tensor):
        return "is for layers with a tensor in `weight`, and this one has none"
    expected = shape[::-1] if row.layout == "[N, K]" else shape
    if tuple(weight.shape) != expected:
        return f"says {row.layout} = {list(expected)}, and its weight is {list(weight.shape)}"
    return ""


def projections(module: nn.Module) -> tuple[str, ...]:
    """Names of the module's own parameters that are linear maps, each with a branch of its own."""
    row = row_of(module)
    return row.parameters if row is not None else ()


def described_projection(module: nn.Module) -> tuple[str, str]:
    """(kind, layout) of a module whose own parameters are linear maps: its name, and what their dimensions are."""
    row = row_of(module)
    assert row is not None
    return row.title(module), row.layout


def linear_weights(module: nn.Module) -> tuple[str, ...]:
    """Names of the module's own parameters that are matrices of linear maps, as [N, K] or [K, N]."""
    row = row_of(module)
    if row is None or row.mixin is None or row.layout not in _MIXINS:
        return ()
    return row.parameters or ("weight",)


def layout_of(module: nn.Module) -> str:
    """What the dimensions of the module's weight are, "[N, K]"; "" where nobody knows."""
    row = row_of(module)
    return row.layout if row is not None else ""


def bias_of(module: nn.Module, parameter: str = "weight") -> torch.Tensor | None:
    """The b of the module's linear map, or of the one that `parameter` is; None where it has none."""
    row = row_of(module)
    bias = getattr(module, row.bias.format(parameter=parameter) if row is not None else "bias", None)
    return bias if isinstance(bias, torch.Tensor) else None


def obstacle(layer: nn.Module) -> Refusal | None:
    """Why this layer cannot carry a branch, or None."""
    row = row_of(layer)
    name = plain_class(layer).__qualname__
    if row is None:
        return Refusal(f"{name} is no known class of linear layer; noble_fx.register_layer makes it one")
    if isinstance(layer._parameters.get("weight"), UninitializedParameter):
        return Refusal(f"{name} is lazy and has no shape yet; run one batch through the model first")
    if parametrize.is_parametrized(layer):
        return Refusal("its weight is parametrized; transform the model first, or remove the parametrization")
    if refusal := row.obstacle(layer):
        if not isinstance(refusal, Refusal):
            raise ConfigError(
                f"the obstacle that was registered for {name} gives {refusal!r}, not Refusal(reason) or None"
            )
        return refusal
    if refusal := _own_forward(layer, row):
        return refusal
    if "forward" in vars(layer):
        return Refusal("its forward was replaced on the instance (an accelerate hook?); transform before that")
    if not isinstance(layer, Augmented) and hasattr(layer, "noble"):
        return Refusal("it already has an attribute named 'noble'")
    return None


def _own_forward(layer: nn.Module, row: LayerRow) -> Refusal | None:
    """Why no branch can be added to what a forward that is not a known one computes, or None."""
    if row.mixin is None or row.recognises is not None or isinstance(layer, Augmented | Structured):
        return None
    plain, known = plain_class(layer), _class_of(row, plain_class(layer))
    if plain.forward is known.forward and not row.registered:
        return None
    if not row.beside:
        return Refusal(f"{plain.__qualname__} is a subclass of nn.{known.__name__} with a forward of its own")
    shape = row.shape(layer)
    return why_no_map(layer, *shape) if shape is not None else None


def why_eager(layer: nn.Module) -> Refusal | None:
    """Why the operator cannot stand for this layer and its branch, whatever the branch; or None."""
    row = row_of(layer)
    if row is None:
        return Refusal(f"{plain_class(layer).__qualname__} is no single linear map")
    if refusal := row.eager(layer):
        return refusal
    if isinstance(layer, Structured):
        beside = Refusal(f"its weight is {layer.base.kind}, beside which the branch runs")
        return None if type(layer.base) is LowRank else beside
    plain, known = plain_class(layer), _class_of(row, plain_class(layer))
    if plain.forward is not known.forward:
        return Refusal(f"{plain.__qualname__} has a forward of its own, beside which the branch runs")
    if not isinstance(layer._parameters.get("weight"), nn.Parameter):
        return Refusal(f"the weight of {plain.__qualname__} is computed, not a parameter")
    return beside_foreign(layer)


def beside_foreign(layer: nn.Module) -> Refusal | None:
    """Why the operator cannot stand for a layer that another library has quantized, perhaps since; or None."""
    kind = quantized.foreign(layer._parameters.get("weight"))
    return Refusal(f"its weight is {kind}, whose product is its own") if kind else None


def _class_of(row: LayerRow, plain: type) -> Any:
    """The class that the row is for: itself, or the one of that name among the layer's bases."""
    if isinstance(row.cls, type):
        return row.cls
    return next(cls for cls in plain.__mro__ if f"{cls.__module__}.{cls.__qualname__}" == row.cls)


def unsuitable_weight(layer: nn.Module) -> Refusal | None:
    """Why a branch beside this layer's weight would be a mistake (quantized, integer, an unknown class), or None."""
    if isinstance(layer, Structured):
        refusal = next(filter(None, map(why_unsuitable, layer.base.parameters())), None)
        return None if refusal and quantized.base_runs(layer.base) else refusal
    weight: Any = getattr(layer, "weight", None)
    if isinstance(weight, torch.Tensor):
        refusal = why_unsuitable(weight)
        return None if refusal and quantized.runs_beside(layer) else refusal
    return Refusal("quantized: its weight is packed") if callable(weight) else None
