"""`transform(branch="lora")` on a model that has branches: linear maps beside them, which stay as they are.

Layers are chosen anew. One with a branch gets its linear map beside it, any other a branch that is a linear map.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from noble_fx.attach.adapters import branch_there, freeze, put_beside
from noble_fx.attach.fast_path import keep_from_fast_path
from noble_fx.attach.model_config import note
from noble_fx.attach.restore import restored_on_error
from noble_fx.attach.unwrapped import check_unwrapped
from noble_fx.branches.adapters import adapter_name, adapters_of
from noble_fx.branches.kinds import branch_class, check_branch
from noble_fx.captures import dynamo
from noble_fx.captures.base import Examples, Plan
from noble_fx.captures.table import captured
from noble_fx.config import NobleConfig
from noble_fx.errors import ConfigError
from noble_fx.sites.choose import choose
from noble_fx.sites.find import find_maps
from noble_fx.sites.site import Site
from noble_fx.torch_versions import forget_compiled

_MODULES = (
    "adapters are put beside the branches of modules, and a captured graph holds the branches that it was made with; "
    "capture the model by capture='modules' (the default), or merge and transform a fresh one"
)
_EXPERTS = "stacked experts, whose branches are computed together"


def stacks(config: NobleConfig) -> bool:
    """Whether a branch of these settings may be put beside one that is there."""
    return "adapter" in branch_class(config).settings


def plan_beside(model: nn.Module, config: NobleConfig, examples: Examples) -> Plan:
    """Where linear maps will be put beside branches; raises `ConfigError` before anything is changed."""
    check_branch(config)
    check_open(model)
    if config.capture not in ("auto", "modules") or examples:
        raise ConfigError(f"capture={config.capture!r}: {_MODULES}")
    if config.base is not None:
        raise ConfigError(
            f"base={config.base!r} gives W another form, which is no part of an adapter: leave it out here"
        )
    maps = find_maps(model)
    against = {each.site.fqn: reason for each in maps if (reason := _against(model, each.site, adapter_name(config)))}
    named = config.select if isinstance(config.select, list | tuple | set | frozenset) else ()
    if refused := next((name for name in named if name in against), None):
        raise ConfigError(f"select names {refused!r}, which cannot have an adapter: {against[refused]}")
    sites = choose(model, maps, config, taken=against)
    if not any(site.selected for site in sites):
        raise ConfigError(f"there is no layer for an adapter: {'; '.join(dict.fromkeys(against.values()))}")
    check_unwrapped(model, "transform", [site.weight or site.fqn for site in sites if site.selected])
    return Plan(config, sites)


def _against(model: nn.Module, site: Site, name: str) -> str:
    """Why nothing can be put beside the branch of a layer, "" where it can; a name that is taken is an error."""
    branch = branch_there(model, site)
    if branch is None:
        return _EXPERTS if site.experts else ""
    adapters = adapters_of(branch)
    if adapters is not None and name in adapters.named():
        raise ConfigError(
            f"the model has an adapter {name!r} already; give the new one another name (adapter=…), or take the old "
            f"one out with noble_fx.drop_adapters(model, {name!r})"
        )
    if site.experts:
        return _EXPERTS
    if not branch.takes_adapters:
        return f"branches of kind {branch.kind!r} do not take adapters"
    return "its branch is folded for inference" if branch.folded else ""


def check_open(model: nn.Module) -> None:
    """Refuse a model that runs a captured graph, or is wrapped: nothing can be put into it."""
    if any(captured(model)):
        raise ConfigError(_MODULES)
    check_unwrapped(model, "transform")


def put_beside_all(model: nn.Module, plan: Plan) -> nn.Module:
    """Draw all linear maps and put them in; on whatever is raised the model is as it was."""
    with restored_on_error(model), torch.no_grad():
        put_sites(model, plan.selected, plan.config)
        freeze(model)
    return model


def put_sites(model: nn.Module, sites: Sequence[Site], config: NobleConfig) -> None:
    """Give the layers of these sites one more linear map each, whether they have a branch or not."""
    dynamo.register()
    forget_compiled()
    for site in sites:
        put_beside(model, site, config)
    keep_from_fast_path(model)
    note(model)
