"""The bases of a model by name, and how they are put into a model that has none: by what a file said of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from noble_fx.bases.base import Base
from noble_fx.bases.kinds import base_of
from noble_fx.errors import ConfigError, printable
from noble_fx.layers.registry import describe
from noble_fx.layers.restructure import structure, why_dense
from noble_fx.layers.structured import Structured
from noble_fx.wrappers import own_name


def named_bases(model: nn.Module) -> dict[str, Base]:
    """Every base of a model by the name of its layer, each once."""
    return {fqn: layer.base for fqn, layer in structured_layers(model).items()}


def structured_layers(model: nn.Module) -> dict[str, Structured]:
    """The layers whose W has another form, each once, by name."""
    return {fqn: module for fqn, module in model.named_modules() if isinstance(module, Structured)}


def described_bases(model: nn.Module) -> dict[str, dict[str, Any]]:
    """What a file says of the bases, by the user's own names: plain JSON values, and whether there is a b beside."""
    return {
        own_name(fqn, model): {**layer.base.described(), "bias": layer.bias is not None}
        for fqn, layer in structured_layers(model).items()
    }


def put_bases(model: nn.Module, described: Mapping[str, Any]) -> None:
    """Give layers of `model` the bases that were described, without values; raises `ConfigError` where one has none."""
    for fqn, said in described.items():
        layer: Any = _layer_at(model, fqn)
        K, N = describe(layer)[1:]  # type: ignore[index]
        said = dict(said) if isinstance(said, dict) else {}
        bias = said.pop("bias", None)
        if not isinstance(bias, bool):
            raise ConfigError(f"the base of {printable(fqn)} does not say whether there is a bias beside it")
        weight = layer._parameters["weight"]
        base = base_of(said, K, N).to(weight.dtype)
        if not weight.is_meta:
            base = base.to_empty(device=weight.device)
        base.train(layer.training).requires_grad_(weight.requires_grad)
        own = layer.bias
        if bias and own is None:
            own = nn.Parameter(torch.zeros(N, dtype=weight.dtype, device=weight.device), weight.requires_grad)
        structure(layer, base, own if bias else None)


def _layer_at(model: nn.Module, fqn: str) -> nn.Module:
    try:
        layer = model.get_submodule(fqn)
    except AttributeError:
        raise ConfigError(f"the model has no layer {printable(fqn)}, whose weight had another form") from None
    if describe(layer) is None:
        raise ConfigError(f"{printable(fqn)} is no linear layer, whose weight had another form")
    if refusal := why_dense(layer):
        raise ConfigError(f"{printable(fqn)} cannot have the form that its weight had: {refusal}")
    return layer
