"""Which linear maps a model has, and which of them get a branch.

Two steps: `find_maps` lists every linear map once, with its role and whatever speaks against it; `choose` applies
`select`, `exclude` and the ranks. Nothing here changes a model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, fx, nn

from noble_fx.branches.experts import BranchGroup
from noble_fx.branches.noble import NobleBranch
from noble_fx.layers.registry import augmented_class, describe, obstacle, unsuitable_weight
from noble_fx.sites.products import Weight, weights_of
from noble_fx.sites.roles import OTHER, is_head_name, is_router_name, role_from_name
from noble_fx.sites.site import Site

_CONTAINERS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)


@dataclass(frozen=True)
class LinearMap:
    """One linear map of the model before any choice; `against` excludes it by default, `obstacle` always."""

    site: Site
    module: nn.Module | None  # None for a bare parameter
    in_block: bool
    against: str
    obstacle: str
    unsuitable: str


def find_maps(
    model: nn.Module, flow_roles: Mapping[str, str] | None = None, graphs: Sequence[fx.Graph] = ()
) -> list[LinearMap]:
    """Every linear map of `model` in definition order; a module with two names is listed once, under its first.

    Exported `graphs` show which parameters are multiplied with outside of any known layer.
    """
    names: dict[int, list[str]] = {}
    modules: dict[int, nn.Module] = {}
    inside: tuple[str, ...] = ()  # below an opaque module, or a branch of our own, nothing is a map of the model
    for fqn, module in model.named_modules(remove_duplicate=False):
        if fqn.startswith(inside) if inside else False:
            continue
        if isinstance(module, NobleBranch | BranchGroup):
            inside = (*inside, fqn + ".")
        if describe(module) is not None:
            names.setdefault(id(module), []).append(fqn)
            modules[id(module)] = module
    blocks = repeated_blocks(model)
    tied = _tied_parameters(model)
    heads = _output_embeddings(model)
    maps = [
        _linear_map(model, modules[key], tuple(fqns), blocks, tied, heads, flow_roles or {})
        for key, fqns in names.items()
    ]
    read = weights_of(list(graphs), model)
    maps = [_as_exported(model, found, read) for found in maps] if graphs else maps
    taken = {id(found.module.weight) for found in maps if found.module is not None and hasattr(found.module, "weight")}
    return maps + [
        _bare_parameter(model, fqn, read.get(fqn), blocks, tied)
        for fqn, parameter in model.named_parameters()
        if id(parameter) not in taken and _is_bare_weight(model, fqn, parameter, read.get(fqn))
    ]


def _linear_map(
    model: nn.Module,
    module: nn.Module,
    names: tuple[str, ...],
    blocks: set[str],
    tied: set[int],
    heads: set[int],
    flow_roles: Mapping[str, str],
) -> LinearMap:
    fqn = names[0]
    described = describe(module)
    assert described is not None
    kind, in_features, out_features = described
    role = role_from_name(fqn, in_features, out_features)
    if role == OTHER:
        role = flow_roles.get(fqn, OTHER)
    in_block = any(fqn.startswith(block + ".") for block in blocks)
    siblings = {name for name, _ in model.get_submodule(fqn.rpartition(".")[0]).named_children()}
    against = ""
    if id(getattr(module, "weight", None)) in tied:
        against = "its weight is tied to another module's"
    elif id(module) in heads or (not in_block and is_head_name(fqn)):
        against = "an output head"
    elif is_router_name(fqn, siblings):
        against = "the router of a mixture of experts"
    site = Site(fqn, role, kind, in_features, out_features, 0, False, "", 0, names[1:])
    unsuitable = unsuitable_weight(module)
    return LinearMap(site, module, in_block, against, "" if unsuitable else obstacle(module), unsuitable)


_NOT_READ = "the exported program does not multiply with its weight"
_PROJECTIONS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


def _as_exported(model: nn.Module, found: LinearMap, read: Mapping[str, Weight]) -> LinearMap:
    """A layer as the graphs read it: a class that is strange to us is none there, an unread weight is no map."""
    weight = getattr(found.module, "weight", None)
    if not isinstance(weight, Tensor):
        return found
    owners = [n for n, m in model.named_modules() if any(p is weight for p in m._parameters.values())]
    names = [f"{owner}.{n}".lstrip(".") for owner in owners for n in model.get_submodule(owner)._parameters]
    use = next((read[name] for name in names if name in read and model.get_parameter(name) is weight), None)
    known = augmented_class(found.module) is not None if found.module is not None else False
    if use is None or use.against or not use.layout:
        return replace(found, obstacle=found.obstacle or (use.against if use is not None else "") or _NOT_READ)
    if known and len(owners) > 1 and sum(describe(model.get_submodule(owner)) is not None for owner in owners) > 1:
        return replace(found, obstacle="its weight is tied to another layer's, and a graph cannot tell the two apart")
    if known:
        return replace(found, obstacle="")
    site = replace(found.site, weight=f"{found.site.fqn}.weight", layout=use.layout)
    return replace(found, site=site, obstacle=use.reader)


def _is_bare_weight(model: nn.Module, fqn: str, parameter: Tensor, use: Weight | None) -> bool:
    """True for a parameter that is a linear map outside any layer, or that looks like stacked experts."""
    owner, _, name = fqn.rpartition(".")
    module = model.get_submodule(owner)
    if ".noble." in f".{fqn}":
        return False
    if isinstance(module, nn.MultiheadAttention):
        return name in _PROJECTIONS
    if use is not None and (use.layout or use.against):
        return not isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    ours = type(module).__module__.startswith(("torch.nn.", "noble_fx."))
    return parameter.ndim == 3 and min(parameter.shape) > 1 and not ours


def _bare_parameter(model: nn.Module, fqn: str, use: Weight | None, blocks: set[str], tied: set[int]) -> LinearMap:
    """A linear map held as a parameter: an attention's in-projection, stacked experts [E, a, b], a matrix."""
    owner, _, name = fqn.rpartition(".")
    module, parameter = model.get_submodule(owner), model.get_parameter(fqn)
    kind, layout, experts, why = "", "", 0, ""
    outs, ins = (int(n) for n in parameter.shape[-2:]) if parameter.ndim > 1 else (1, 1)
    if isinstance(module, nn.MultiheadAttention):
        kind, layout = "MultiheadAttention", "[N, K]"
        if use is None and augmented_class(module) is None:
            why = f"{type(module).__qualname__} is a subclass of nn.MultiheadAttention, with a forward of its own"
    elif use is None:
        kind, ins, outs = f"stacked parameter [{parameter.shape[0]}, a, b]", outs, ins
        why = "a bare parameter: there is no layer to carry a branch in this capture; capture='export' reaches it"
    if use is not None:
        kind, layout, experts = kind or use.kind, use.layout, use.experts
        ins, outs = (use.in_features, use.out_features) if use.layout else (ins, outs)
        why = use.against or use.reader
    shown = owner if name == "weight" else fqn.removesuffix("_weight")
    siblings = {n for n, _ in model.get_submodule(owner.rpartition(".")[0]).named_children()}
    in_block = any(fqn.startswith(block + ".") for block in blocks)
    against = "its weight is tied to another module's" if id(parameter) in tied else ""
    if not against and not in_block and is_head_name(shown):
        against = "an output head"
    elif not against and is_router_name(owner, siblings):
        against = "the router of a mixture of experts"
    role = role_from_name(shown, ins, outs)
    site = Site(fqn, role, kind, ins, outs, 0, False, "", 0, weight=fqn, layout=layout, experts=experts)
    return LinearMap(site, None, in_block, against, why, "")


def repeated_blocks(model: nn.Module) -> set[str]:
    """Names of the repeated blocks: children of one container, two or more of a class, with linear maps inside."""
    blocks: set[str] = set()
    for fqn, container in model.named_modules():
        if not isinstance(container, _CONTAINERS):
            continue
        children = dict(container._modules.items())
        holders = {
            name: child
            for name, child in children.items()
            if child is not None and any(m is not child and describe(m) is not None for m in child.modules())
        }
        counts = Counter(type(child) for child in holders.values())
        blocks |= {f"{fqn}.{name}" if fqn else name for name, child in holders.items() if counts[type(child)] >= 2}
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


# --- choosing --------------------------------------------------------------------------------------------------------
