"""Linear maps as graphs show them: layers whose weights are read, and parameters that are maps by themselves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, fx, nn

from noble_fx.errors import Refusal
from noble_fx.layers.registry import (
    augmented_class,
    describe,
    described_projection,
    obstacle,
    projections,
    row_of,
    why_eager,
)
from noble_fx.layers.structured import Structured
from noble_fx.layers.weights import why_unsuitable
from noble_fx.sites.blocks import Surroundings, surroundings, with_role
from noble_fx.sites.layer_maps import LinearMap
from noble_fx.sites.products import Weight, weights_of
from noble_fx.sites.roles import role_in
from noble_fx.sites.site import Site
from noble_fx.sites.source import multiplied

_NOT_READ = Refusal("the exported program does not multiply with its weight")
_PARTS = Refusal("the exported program has the parts of its weight, and no node for the layer; use capture='modules'")
_TWO_LAYERS = Refusal("its weight is tied to another layer's, and a graph cannot tell the two apart")
_NO_LAYER = Refusal(
    "a bare parameter: there is no layer to carry a branch in this capture; capture='export' reaches it"
)


def as_exported(model: nn.Module, layers: Sequence[LinearMap], graphs: Sequence[fx.Graph]) -> list[LinearMap]:
    """Layers as the graphs read them: a class that is strange to us is none there, an unread weight is no map."""
    read = weights_of(list(graphs), model)
    owners: dict[int, list[str]] = {}
    for fqn, module in model.named_modules():
        for parameter in module._parameters.values():
            owners.setdefault(id(parameter), []).append(fqn)
    return [_as_exported(model, layer, read, owners) for layer in layers]


def _as_exported(
    model: nn.Module, layer: LinearMap, read: Mapping[str, Weight], owners: Mapping[int, list[str]]
) -> LinearMap:
    if isinstance(layer.module, Structured):
        return replace(layer, obstacle=layer.obstacle or _PARTS)
    weight = getattr(layer.module, "weight", None)
    if not isinstance(weight, Tensor) or layer.module is None:
        return layer
    holders = owners.get(id(weight), [])
    names = [f"{holder}.{n}".lstrip(".") for holder in holders for n in model.get_submodule(holder)._parameters]
    use = next((read[name] for name in names if name in read and model.get_parameter(name) is weight), None)
    if use is None or use.against or not use.layout:
        why = Refusal(use.against) if use is not None and use.against else _NOT_READ
        return replace(layer, obstacle=layer.obstacle or why)
    eager = _eager_form(use)
    if augmented_class(layer.module) is not None:
        several = sum(describe(model.get_submodule(holder)) is not None for holder in holders) > 1
        return replace(layer, obstacle=_TWO_LAYERS if several else None, eager=eager)
    site = replace(layer.site, weight=f"{layer.site.fqn}.weight", layout=use.layout)
    return replace(layer, site=site, obstacle=Refusal(use.reader) if use.reader else None, eager=eager)


def _eager_form(use: Weight) -> Refusal | None:
    """Why a product of this form and its branch are not one operator, or None."""
    reasons = {
        "experts": "stacked experts, computed together",
        "convolution": "a 1x1 convolution, whose channels are not the last dimension",
        "einsum": "an einsum, whose features may be several axes",
    }
    return Refusal(reasons[use.form]) if use.form in reasons else None


def parameter_maps(model: nn.Module, layers: Sequence[LinearMap], graphs: Sequence[fx.Graph]) -> list[LinearMap]:
    """The parameters of `model` that are linear maps outside any layer; without graphs, as far as the source shows."""
    read, around = weights_of(list(graphs), model), surroundings(model)
    taken = {id(parameter) for layer in layers for parameter in _weights(layer.module)}
    found = []
    for fqn, parameter in model.named_parameters():
        if id(parameter) not in taken and ".noble." not in f".{fqn}":
            use = read.get(fqn)
            hidden = None if graphs or use is not None else _hidden(model, fqn, parameter)
            if hidden or _is_map(model, fqn, use):
                found.append(_parameter_map(model, fqn, use, around, hidden, bool(graphs)))
    return found


def _weights(layer: nn.Module | None) -> Iterable[Any]:
    """What the weight of a listed layer is, or is made of."""
    return layer.base.parameters() if isinstance(layer, Structured) else [getattr(layer, "weight", None)]


def _is_map(model: nn.Module, fqn: str, use: Weight | None) -> bool:
    """True for a projection of an attention, and for what a graph multiplies with."""
    owner, _, name = fqn.rpartition(".")
    module = model.get_submodule(owner)
    if projections(module):
        return name in projections(module)
    if use is not None and (use.layout or use.against):
        row = row_of(module)  # the weight of a layer that is no map as it stands (a 3×3 convolution) is none either
        return row is None or row.mixin is None
    return False


def _hidden(model: nn.Module, fqn: str, parameter: Tensor) -> Refusal | None:
    """Why a matrix of the user's own class, which its source multiplies with, can carry no branch; None for no such."""
    owner, _, name = fqn.rpartition(".")
    module = model.get_submodule(owner)
    if isinstance(module, nn.ParameterList | nn.ParameterDict):
        owner, _, name = owner.rpartition(".")
        module = model.get_submodule(owner)
    ours = type(module).__module__.startswith(("torch.nn.", "noble_fx."))
    if ours or parameter.ndim not in (2, 3) or min(parameter.shape) < 2:
        return None
    cls: Any = type(module)
    names, kind = multiplied(cls), cls.__qualname__
    if names is None:
        return Refusal(f"{kind} has no source that would show whether it multiplies with it; capture='export' does")
    if name not in names:
        return None
    if name == "weight" and parameter.ndim == 2:
        return Refusal(f"{_NO_LAYER}, and noble_fx.register_layer makes {kind} one")
    return _NO_LAYER


def _stacked_sizes(layout: str, parameter: Tensor) -> tuple[int, int, int]:
    """(K, N, E) of a parameter whose dimensions are `layout`; E is 0 where it stacks none."""
    sizes = dict(zip(layout.strip("[]").split(", "), map(int, parameter.shape), strict=False))
    return sizes.get("K", 1), sizes.get("N", 1), sizes.get("E", 0)


def _parameter_map(
    model: nn.Module, fqn: str, use: Weight | None, around: Surroundings, hidden: Refusal | None, in_graphs: bool
) -> LinearMap:
    owner, _, name = fqn.rpartition(".")
    module, parameter = model.get_submodule(owner), model.get_parameter(fqn)
    layout, experts, refusal, eager = "", 0, None, None
    outs, ins = (int(n) for n in parameter.shape[-2:]) if parameter.ndim > 1 else (1, 1)
    if projections(module):
        kind, layout = described_projection(module)
        ins, outs, experts = _stacked_sizes(layout, parameter)
        refusal, eager = (obstacle(module), why_eager(module)) if use is None else (None, None)
        refusal = _NOT_READ if use is None and in_graphs and experts else refusal
    elif use is None:
        stacked = parameter.ndim == 3
        kind, refusal = f"stacked parameter [{parameter.shape[0]}, a, b]" if stacked else "bare parameter", hidden
        ins, outs = (outs, ins) if stacked else (ins, outs)
    else:
        kind = use.kind
    if use is not None:
        kind = kind if use.form != "experts" else use.kind
        layout, experts, eager = use.layout, use.experts, _eager_form(use)
        ins, outs = (use.in_features, use.out_features) if use.layout else (ins, outs)
        why = use.against or use.reader
        refusal = Refusal(why) if why else None
    shown = owner if owner and name == "weight" else fqn.removesuffix("_weight")
    role = role_in(model, shown, ins, outs)
    site = Site(fqn, role, kind, ins, outs, 0, False, "", 0, weight=fqn, layout=layout, experts=experts)
    against = around.against(site, shown, owner, parameter)
    return LinearMap(
        with_role(site, against), None, around.in_block(fqn), against, refusal, why_unsuitable(parameter), eager
    )
