"""What surrounds a linear map in its model: repeated blocks, tied weights, the output head."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from noble_fx.errors import Refusal
from noble_fx.layers.registry import describe
from noble_fx.sites.adapters import why_adapter
from noble_fx.sites.heads import is_head_name
from noble_fx.sites.routers import is_router_class, is_router_name

_CONTAINERS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)
TIED = Refusal("its weight is tied to another module's")
HEAD = Refusal("an output head")
ROUTER = Refusal("the router of a mixture of experts")


@dataclass(frozen=True)
class Surroundings:
    """What is asked about every linear map of one model, computed once."""

    model: nn.Module
    blocks: set[str]  # names of the repeated blocks
    tied: set[int]  # identities of parameters that several modules hold
    heads: set[int]  # identities of modules that the model itself calls its head
    flow_roles: Mapping[str, str] = field(default_factory=dict)  # roles read off a graph, by module name

    def in_block(self, fqn: str) -> bool:
        """True for what lies inside a repeated block."""
        return any(fqn.startswith(block + ".") for block in self.blocks)

    def siblings(self, fqn: str) -> set[str]:
        """Names of the modules beside this one, its own among them."""
        return {name for name, _ in self.model.get_submodule(fqn.rpartition(".")[0]).named_children()}

    def against(self, fqn: str, shown: str, owner: str, weight: object, module: nn.Module | None) -> Refusal | None:
        """Why a preset passes over this map: an adapter, a tied weight, an output head, a router; else None.

        `shown` is the name that says what it does, `owner` the module that would be a router.
        """
        if adapter := why_adapter(self.model, fqn):
            return adapter
        if id(weight) in self.tied:
            return TIED
        if id(module) in self.heads or (not self.in_block(fqn) and is_head_name(shown)):
            return HEAD
        router = is_router_name(owner, self.siblings(owner)) or is_router_class(type(module))
        return ROUTER if router else None


def surroundings(model: nn.Module, flow_roles: Mapping[str, str] | None = None) -> Surroundings:
    """The surroundings of every linear map of `model`."""
    return Surroundings(
        model, repeated_blocks(model), _tied_parameters(model), _output_embeddings(model), flow_roles or {}
    )


def repeated_blocks(model: nn.Module) -> set[str]:
    """Names of the repeated blocks: children of one container, two or more of a class, with linear maps inside."""
    blocks: set[str] = set()
    for fqn, container in model.named_modules():
        if not isinstance(container, _CONTAINERS):
            continue
        children = {
            name: child
            for name, child in container._modules.items()
            if child is not None and any(m is not child and describe(m) is not None for m in child.modules())
        }
        counts = Counter(type(child) for child in children.values())
        blocks |= {f"{fqn}.{name}" if fqn else name for name, child in children.items() if counts[type(child)] >= 2}
    return blocks


def _tied_parameters(model: nn.Module) -> set[int]:
    owners: dict[int, set[int]] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(id(parameter), set()).add(id(module))
    return {parameter for parameter, modules in owners.items() if len(modules) > 1}


def _output_embeddings(model: nn.Module) -> set[int]:
    getter = getattr(model, "get_output_embeddings", None)  # Hugging Face's own word for the head
    try:
        head = getter() if callable(getter) else None
    except (NotImplementedError, AttributeError):
        head = None
    return {id(head)} if isinstance(head, nn.Module) else set()
