"""The layers of a model that are linear maps, each with its role and whatever speaks against it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from noble_fx.bases.base import Base
from noble_fx.branches.base import Branch
from noble_fx.branches.experts import BranchGroup
from noble_fx.errors import Refusal
from noble_fx.layers.quantized import foreign, is_frozen
from noble_fx.layers.registry import describe, obstacle, unsuitable_weight, why_eager
from noble_fx.layers.structured import Structured
from noble_fx.sites.blocks import Surroundings, surroundings, with_role
from noble_fx.sites.roles import OTHER, role_in
from noble_fx.sites.site import Site

_BESIDE = "; beside {weight}"
_SHARED = "; its weight is shared with {others} other layer{s}, and each has a branch of its own"


@dataclass(frozen=True)
class LinearMap:
    """One linear map of the model before any choice; `against` excludes it by default, `obstacle` always."""

    site: Site
    module: nn.Module | None  # None for a bare parameter
    in_block: bool
    against: Refusal | None = None
    obstacle: Refusal | None = None
    unsuitable: Refusal | None = None
    eager: Refusal | None = None  # why the operator could not run a branch here, whatever its kind
    passed_over: Refusal | None = None  # why "auto" alone leaves it out, in a repeated block too
    note: str = ""  # what a chosen one should say of itself
    frozen: bool = False  # its weight is quantized or of another form, and nothing can be drawn into it


def layer_maps(model: nn.Module, flow_roles: Mapping[str, str] | None = None) -> list[LinearMap]:
    """The layers of `model` that are linear maps, in definition order; one with two names is listed under its first."""
    around = surroundings(model, flow_roles)
    names: dict[int, tuple[nn.Module, list[str]]] = {}
    for fqn, module in _outside_branches(model):
        if describe(module) is not None:
            names.setdefault(id(module), (module, []))[1].append(fqn)
    return [_layer_map(module, tuple(fqns), around) for module, fqns in names.values()]


def _outside_branches(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module under each of its names, but those inside branches and bases, which are no maps of the model."""
    inside: tuple[str, ...] = ()
    for fqn, module in model.named_modules(remove_duplicate=False):
        if inside and fqn.startswith(inside):
            continue
        if isinstance(module, Branch | BranchGroup | Base):
            inside = (*inside, fqn + ".")
        else:
            yield fqn, module


def _layer_map(module: nn.Module, names: tuple[str, ...], around: Surroundings) -> LinearMap:
    fqn = names[0]
    described = describe(module)
    assert described is not None
    kind, in_features, out_features = described
    role = role_in(around.model, fqn, in_features, out_features)
    if role == OTHER:
        role = around.flow_roles.get(fqn, OTHER)
    unsuitable = unsuitable_weight(module)
    refusal = None if unsuitable else obstacle(module)
    site = Site(fqn, role, kind, in_features, out_features, 0, False, "", 0, names[1:], **_form(module))
    weight = module._parameters.get("weight")
    against, others = around.against(site, fqn, fqn, weight), around.layers_over(fqn, weight) - 1
    return LinearMap(
        with_role(site, against),
        module,
        around.in_block(fqn),
        against,
        refusal,
        unsuitable,
        None if refusal or unsuitable else why_eager(module),
        note=_note(weight, others),
        frozen=is_frozen(weight) or isinstance(module, Structured),
    )


def _form(module: nn.Module) -> dict[str, Any]:
    """What a site says of a W of another form."""
    if not isinstance(module, Structured):
        return {}
    return {"action": module.base.action, **form_of(module.base)}


def form_of(base: Base) -> dict[str, Any]:
    """What a site says of its base."""
    counted = {"base_params": sum(p.numel() for p in base.parameters()), "base_row_flops": base.flops()}
    own = {"base": base.kind, "base_rank": base.rank, "base_guide": base.guide, "base_error": base.error}
    return {**own, "base_method": base.method, **counted}


def _note(weight: Any, others: int) -> str:
    shared = _SHARED.format(others=others, s="s" * (others > 1)) if others > 0 else ""
    return shared + (_BESIDE.format(weight=foreign(weight)) if foreign(weight) else "")
