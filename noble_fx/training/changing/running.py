"""A model that is being trained, looked at before its branches are changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from noble_fx.attach.adapters import check_none
from noble_fx.attach.attach import branch_paths, named_branches
from noble_fx.attach.settled import check_names
from noble_fx.attach.switched_off import is_off
from noble_fx.attach.unwrapped import check_unwrapped
from noble_fx.branches.base import Branch
from noble_fx.captures.table import captured
from noble_fx.distributed import is_distributed
from noble_fx.errors import CaptureError, ConfigError
from noble_fx.inspect import sites
from noble_fx.sites.site import Site
from noble_fx.wrappers import own_name, unwrapped


@dataclass(frozen=True)
class Running:
    """The user's own model, out of torch.compile, with its sites as they are."""

    model: nn.Module
    sites: tuple[Site, ...]

    @property
    def selected(self) -> list[Site]:
        """The sites that carry branches."""
        return [site for site in self.sites if site.selected]

    def branches(self, site: Site) -> list[Branch]:
        """The branches of one of its sites."""
        held: list[Any] = [self.model.get_submodule(path) for path in branch_paths(site)]
        return held


def running(model: nn.Module) -> Running:
    """A model whose branches may change; raises `ConfigError` or `CaptureError` where they may not, with the remedy."""
    branches = named_branches(model)
    if not branches:
        raise ConfigError("the model carries no branches; call noble_fx.transform first")
    check_none(model, "a change of ranks or sites")
    check_unwrapped(model, "change", (fqn for fqn, module in model.named_modules() if isinstance(module, Branch)))
    model = unwrapped(model)
    for capture, _ in captured(model):
        raise CaptureError(
            f"the model runs a graph (capture={type(capture).__name__.lower()!r}) that was made for the branches that "
            "it has; transform with capture='modules' (the default), and call this before the model is captured"
        )
    for fqn, branch in branches.items():
        _check_branch(own_name(fqn, model), branch)
    listed = sites(model)
    check_names(model, listed)
    _check_ties(model)
    return Running(model, listed)


def _check_branch(name: str, branch: Branch) -> None:
    if is_off(branch):
        raise ConfigError("the model is inside noble_fx.disabled(model); leave that first")
    if branch.folded:
        raise ConfigError("the model is folded for inference; change the model that it was folded from")
    if any(is_distributed(tensor) for tensor in branch.parameters()):
        raise CaptureError(f"the branch at {name!r} is spread over ranks; change the plain model, then shard it anew")


def _check_ties(model: nn.Module) -> None:
    """Refuse a tensor of a branch that stands at another place as well, and would be one no more."""
    places: dict[int, set[tuple[int, str]]] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            places.setdefault(id(parameter), set()).add((id(module), name))
    for fqn, branch in named_branches(model).items():
        own = {id(part) for part in branch.modules()}
        for name, parameter in branch.named_parameters():
            if any(owner not in own for owner, _ in places[id(parameter)]):
                raise ConfigError(
                    f"{name!r} of the branch at {own_name(fqn, model)!r} is a parameter of another module too, and "
                    "would be one no more; untie them first"
                )
