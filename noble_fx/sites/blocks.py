"""What surrounds a linear map in its model: repeated blocks, tied weights, the output head."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from noble_fx.errors import Refusal
from noble_fx.layers.base import plain_class
from noble_fx.layers.registry import describe
from noble_fx.sites.adapters import why_adapter
from noble_fx.sites.heads import is_head_name
from noble_fx.sites.routers import is_router, is_router_class
from noble_fx.sites.site import Site

_NUMBERED = re.compile(r"(.*?)_?\d+")
TIED = Refusal("its weight is tied to another module's")
HEAD = Refusal("an output head")
ROUTER = Refusal("the router of a mixture of experts")


@dataclass(frozen=True)
class Surroundings:
    """What is asked about every linear map of one model, computed once."""

    model: nn.Module
    blocks: set[str]  # names of the repeated blocks
    owners: Mapping[int, list[nn.Module]]  # the modules that hold a parameter, by its identity
    heads: set[int]  # identities of modules that the model itself calls its head
    flow_roles: Mapping[str, str] = field(default_factory=dict)  # roles read off a graph, by module name

    def in_block(self, fqn: str) -> bool:
        """True for what lies inside a repeated block."""
        return any(fqn.startswith(block + ".") for block in self.blocks)

    def against(self, site: Site, shown: str, owner: str, weight: object) -> Refusal | None:
        """Why a preset passes over this map: an adapter, a tied weight, an output head, a router; else None.

        `shown` is the name that says what it does, `owner` the layer, or the module that holds the bare `weight`.
        """
        if adapter := why_adapter(self.model, site.fqn):
            return adapter
        if self.layers_over(site.fqn, weight) == 0:
            return TIED
        if id(self.model.get_submodule(owner)) in self.heads:
            return HEAD
        if self._is_router(site, owner):
            return ROUTER
        return HEAD if self._is_head(site, shown) else None

    def layers_over(self, fqn: str, weight: object) -> int:
        """How many layers have this weight: 1, more where repeated blocks share it, 0 where it is tied otherwise."""
        owners = self.owners.get(id(weight), [])
        if len(owners) < 2:
            return 1
        return len(owners) if self.in_block(fqn) and _are_layers(owners) else 0

    def _is_head(self, site: Site, shown: str) -> bool:
        outermost = min((block for block in self.blocks if site.fqn.startswith(block + ".")), key=len, default=None)
        if outermost is None:
            return is_head_name(shown) or self.flow_roles.get(site.fqn) == "head"
        return is_head_name(outermost.split(".")[-2]) if "." in outermost else False  # a list of heads, one a layer

    def _is_router(self, site: Site, owner: str) -> bool:
        named = site.role == "router" and not is_router_class(
            type(self.model)
        )  # a model that routes is no router's part
        if named or self.flow_roles.get(site.fqn) == "router":
            return True
        return not site.role.startswith("attention") and is_router(self.model, owner, site.out_features)


def with_role(site: Site, against: Refusal | None) -> Site:
    """The site with the role of a router or a head, where that is why it is left out."""
    role = {ROUTER: "router", HEAD: "head"}.get(against) if against else None
    return replace(site, role=role) if role else site


def surroundings(model: nn.Module, flow_roles: Mapping[str, str] | None = None) -> Surroundings:
    """The surroundings of every linear map of `model`."""
    return Surroundings(model, repeated_blocks(model), _owners(model), _output_embeddings(model), flow_roles or {})


def repeated_blocks(model: nn.Module) -> set[str]:
    """Names of the repeated blocks: modules with linear maps inside that are

    in a ModuleList            all: a list of modules is a stack, be its classes alternating or its length one
    in another container       two or more of a class
    attributes with numbers    two or more of a class: layer1, layer2, …
    anywhere                   of a class of one's own that is a block elsewhere
    """
    filled = _with_maps_inside(model)
    blocks: dict[str, nn.Module] = {}
    for fqn, holder in model.named_modules():
        children = {name: child for name, child in holder.named_children() if id(child) in filled}
        for name in _in_stack(holder, children):
            blocks[f"{fqn}.{name}" if fqn else name] = children[name]
    stacks = {name: plain_class(block) for name, block in blocks.items() if not is_head_name(name.rpartition(".")[0])}
    kinds = {kind for kind in stacks.values() if not kind.__module__.startswith("torch.nn.modules.container")}
    return {*blocks, *(fqn for fqn, module in model.named_modules() if fqn and plain_class(module) in kinds)}


def _with_maps_inside(model: nn.Module) -> set[int]:
    """Identities of the modules that hold a linear map, and are none themselves."""
    filled: set[int] = set()
    for fqn, module in model.named_modules(remove_duplicate=False):
        if describe(module) is not None:
            holder = model
            for name in fqn.split(".") if fqn else []:
                if describe(holder) is not None:
                    break  # what lies inside a layer (its branch) makes it no block
                filled.add(id(holder))
                holder = getattr(holder, name)
    return filled


def _in_stack(holder: nn.Module, children: dict[str, nn.Module]) -> Iterator[str]:
    """Which of the children with linear maps inside are blocks."""
    if isinstance(holder, nn.ModuleList):
        yield from children
        return
    container = isinstance(holder, nn.Sequential | nn.ModuleDict)
    alike: dict[Any, list[str]] = {}
    for name, child in children.items():
        numbered = _NUMBERED.fullmatch(name)
        if container or numbered:
            series = numbered[1] if numbered and not container else ""
            alike.setdefault((plain_class(child), series), []).append(name)
    for names in alike.values():
        yield from names if len(names) > 1 else ()


def _owners(model: nn.Module) -> dict[int, list[nn.Module]]:
    """The modules that hold a parameter, by its identity."""
    owners: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        for parameter in {id(p) for p in module._parameters.values() if p is not None}:
            owners.setdefault(parameter, []).append(module)
    return owners


def _are_layers(modules: list[nn.Module]) -> bool:
    """True for modules of one class that is a linear layer."""
    return len({type(module) for module in modules}) == 1 and describe(modules[0]) is not None


def _output_embeddings(model: nn.Module) -> set[int]:
    getter = getattr(model, "get_output_embeddings", None)  # Hugging Face's own word for the head
    try:
        head = getter() if callable(getter) else None
    except (NotImplementedError, AttributeError):
        head = None
    return {id(head)} if isinstance(head, nn.Module) else set()
