"""The bases of a model by name, and how they are put into a model that has none.

By what a file said of them, or by what was chosen of a model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from noble_fx.bases.base import Base
from noble_fx.bases.guided import Guided
from noble_fx.bases.kinds import base_class, base_of
from noble_fx.branches.drawing import drawing
from noble_fx.branches.own_tensors import refill
from noble_fx.config import NobleConfig
from noble_fx.errors import ConfigError, printable
from noble_fx.layers.registry import describe
from noble_fx.layers.restructure import matrix_of, structure, why_dense
from noble_fx.layers.structured import Structured
from noble_fx.sites.site import Site
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
            for buffer in base.buffers():  # places of W among them, which nobody may look up before they are read
                buffer.zero_()
        base.train(layer.training).requires_grad_(weight.requires_grad)
        own = layer.bias
        if bias and own is None:
            own = nn.Parameter(torch.zeros(N, dtype=weight.dtype, device=weight.device), weight.requires_grad)
        structure(layer, base, own if bias else None)


def build_bases(model: nn.Module, sites: Iterable[Site], config: NobleConfig) -> dict[str, Base]:
    """The bases that were planned, by the names of their layers; a layer that has one already keeps it."""
    planned = [site for site in sites if site.base and not isinstance(model.get_submodule(site.fqn), Structured)]
    return {site.fqn: _built(model, site, config) for site in planned}


def _built(model: nn.Module, site: Site, config: NobleConfig) -> Base:
    """The base of one site, filled from the layer's weight; what is random of it is drawn as a branch is.

    With init_base=True it is not filled: the weight is drawn afterwards (`attach/draw.py`). On meta it lacks values.
    """
    layer: Any = model.get_submodule(site.fqn)
    weight, kind = matrix_of(layer), base_class(site.base)
    device = torch.device("meta" if weight.is_meta else "cpu")
    with drawing(config, f"{own_name(site.fqn, model)}.base"), device:
        base = kind(site.in_features, site.out_features, site.base_rank, **config.base_settings or {})
        base = Guided(base, config.guide) if config.guide else base
        base.draw()
    base.lacks_values = weight.is_meta
    base.to(device=weight.device, dtype=weight.dtype).train(layer.training).requires_grad_(weight.requires_grad)
    if not weight.is_meta and not config.init_base:
        base.fill(weight.detach())
    return base


def put_base(model: nn.Module, fqn: str, base: Base) -> None:
    """Give a layer its base, in the place of its weight."""
    layer: Any = model.get_submodule(fqn)
    structure(layer, base, layer._parameters["bias"])


def refill_base(model: nn.Module, site: Site, weight: Tensor, config: NobleConfig) -> None:
    """Give the base of one site the form of another W [N, K], in place: on every rank that holds a part of it."""
    base: Any = model.get_submodule(site.fqn).base
    with drawing(config, f"{own_name(site.fqn, model)}.base"):
        fresh = base_of(base.described(), base.in_features, base.out_features).to_empty(device="cpu")
        fresh.draw()
    fresh.fill(weight)
    with torch.no_grad():
        for name, values in [*fresh.named_parameters(), *fresh.named_buffers()]:
            owner, _, leaf = name.rpartition(".")
            refill(base.get_submodule(owner), leaf, values)
    base.lacks_values = False


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
