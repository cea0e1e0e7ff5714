"""Where a site's branch lives in the module tree, and how it is put there and taken out again.

    a layer of a known class        <layer>.noble.down                    the layer's class is swapped, the object stays
    a whole block                   <block>.noble.down                    likewise; scope="block"
    a bare parameter                <owner>.noble.<parameter>.down        the owner's forward stays as it is
    a stacked weight [E, …]         <owner>.noble.<parameter>.<e>.down

An owner that is an `nn.MultiheadAttention` gets the class that adds its branches; any other owner of a bare parameter
is run by an exported graph, which does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from torch import nn

from noble_fx.branches.base import Branch
from noble_fx.branches.experts import BranchGroup, expert_branches
from noble_fx.branches.lora import LoraBranch
from noble_fx.config import NobleConfig
from noble_fx.errors import ConfigError
from noble_fx.layers.base import Augmented, class_without_branch
from noble_fx.layers.block import block_with_branch
from noble_fx.layers.registry import augmented_class, obstacle, projections
from noble_fx.sites.site import Site


def branch_paths(site: Site) -> list[str]:
    """Module paths of the site's branches: one, or one per expert."""
    if not site.weight:
        return [f"{site.fqn}.noble" if site.fqn else "noble"]
    owner, _, name = site.weight.rpartition(".")
    path = f"{owner}.noble.{name}" if owner else f"noble.{name}"
    return [f"{path}.{e}" for e in range(site.experts)] if site.experts else [path]


def site_name(path: str) -> str:
    """The name of a branch: its path without the reserved `noble`; it is what a seed depends on."""
    parts = path.split(".")
    at = len(parts) - 1 - parts[::-1].index("noble") if "noble" in parts else len(parts)
    return ".".join([*parts[:at], *parts[at + 1 :]])


def named_branches(model: nn.Module) -> dict[str, Branch]:
    """Every branch of a model by the name of its layer or parameter, each once; `ConfigError` for what is no model."""
    if not isinstance(model, nn.Module):
        raise ConfigError(f"noble_fx takes an nn.Module for a model, not {type(model).__name__}")
    return {site_name(fqn): m for fqn, m in model.named_modules() if isinstance(m, Branch)}


def made_by(branches: Iterable[Branch]) -> NobleConfig:
    """The settings that made a model of these branches: those of one that is more than adapters, if there is one."""
    listed = list(branches)
    return next((branch for branch in listed if not isinstance(branch, LoraBranch)), listed[0]).config


def attach(model: nn.Module, site: Site, branches: list[Branch]) -> None:
    """Put the branches of one site into `model`."""
    if not site.weight:
        layer = model.get_submodule(site.fqn)
        kind = block_with_branch(layer) if site.is_block else augmented_class(layer)
        assert kind is not None
        assert issubclass(kind, nn.Module)
        # The object stays the same one, so hooks, optimizers and every other reference to the layer keep working.
        layer.__class__ = kind
        layer.noble = branches[0]
        parent = model.get_submodule(site.fqn.rpartition(".")[0])
        if projections(parent):
            _group(parent)
        return
    owner, _, name = site.weight.rpartition(".")
    _group(model.get_submodule(owner))[name] = expert_branches(branches) if site.experts else branches[0]


def _group(owner: nn.Module) -> BranchGroup:
    if not hasattr(owner, "noble"):
        # An attention adds its branches itself; any other owner of a bare parameter is run by a graph, which does.
        kind = augmented_class(owner) if projections(owner) and obstacle(owner) is None else None
        if kind is not None:
            owner.__class__ = kind  # type: ignore[assignment]
        owner.noble = BranchGroup()
    assert isinstance(owner.noble, BranchGroup)
    return owner.noble


def carriers(model: nn.Module) -> Iterator[nn.Module]:
    """The modules that hold branches in `noble`."""
    for module in model.modules():
        if isinstance(module._modules.get("noble"), Branch | BranchGroup):
            yield module


def exchange(model: nn.Module, new: Mapping[int, Branch]) -> None:
    """Put other branches into the places of those whose identities are the keys, wherever `model` holds them."""
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if id(child) in new:
                module._modules[name] = new[id(child)]


def detach_site(model: nn.Module, site: Site) -> None:
    """Take the branches of one site out of `model`; an attention without any is of its own class again."""
    path = (site.weight or site.fqn).rpartition(".")[0]
    parent = model.get_submodule(path)
    if not site.weight:
        detach(model.get_submodule(site.fqn))
    else:
        del _group(parent)[site.weight.rpartition(".")[2]]
    group = parent._modules.get("noble")
    within = any(isinstance(child._modules.get("noble"), Branch) for child in parent.children())
    if isinstance(group, BranchGroup) and not len(group) and not (projections(parent) and within):
        detach(parent)


def detach(module: nn.Module) -> None:
    """Take the branches out of one module, and give it its own class back."""
    if isinstance(module, Augmented):
        module.__class__ = class_without_branch(module)  # type: ignore[assignment]
    if "noble" in module._modules:
        del module.noble
