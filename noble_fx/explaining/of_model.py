"""The account of a live model, transformed or not."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import nn

from noble_fx.attach.adapters import named_adapters
from noble_fx.attach.attach import branch_paths, made_by, named_branches
from noble_fx.attach.carried import module_at
from noble_fx.attach.gone import told_gone
from noble_fx.branches.base import Branch
from noble_fx.captures.base import Examples
from noble_fx.captures.table import captured
from noble_fx.config import NobleConfig
from noble_fx.errors import ConfigError, Refusal, shown
from noble_fx.explaining.account import CARRIED, LEFT_OUT, PLANNED, Account, SiteAccount
from noble_fx.explaining.cost import base_flops, branch_flops
from noble_fx.explaining.graphs import graph_account
from noble_fx.explaining.kept import told_kept
from noble_fx.explaining.kernels import KernelAccount, kernel_accounts
from noble_fx.explaining.planned import planned_entries
from noble_fx.inspect import known_programs, sites
from noble_fx.ops.available import why_no_kernel
from noble_fx.sites.site import Site

_NONE = Examples()


def account_of_model(model: nn.Module, examples: Examples = _NONE) -> Account:
    """What was found and done in `model`; of one without branches, what `transform` would choose by default.

    `examples` serve to make a graph to look at, where there is none without.
    """
    branches = named_branches(model)
    mine = {id(p) for branch in branches.values() for p in branch.parameters()}
    counted = [(id(p) in mine, p.numel()) for p in model.parameters()]
    common: dict[str, Any] = {
        "model": type(model).__name__,
        "base_params": sum(n for ours, n in counted if not ours),
        "branch_params": sum(n for ours, n in counted if ours),
    }
    listed, gone = sites(model), told_gone(model)
    note = {"gone": gone} if gone else {}
    if not branches:
        entries = planned_entries(listed, PLANNED, NobleConfig(), layer_of=lambda site: module_at(model, site.fqn))
        return Account(entries=entries, settings=note, transformed=False, **common)
    held = {site.fqn: branch_at(model, site) for site in listed if site.selected}
    programs, without = known_programs(model, examples)
    return Account(
        entries=tuple(_entry(model, site, held.get(site.fqn)) for site in listed),
        settings=_settings(branches) | _adapted(model, held) | note | _notes(model) | _without_graph(without),
        config=config_values(made_by(branches.values())),
        programs=programs,
        graphs=tuple(map(graph_account, programs)),
        kernels=_kernels(model, listed, held),
        branches=held,
        **common,
    )


def branch_at(model: nn.Module, site: Site) -> Branch:
    """The branch of a site that has one, of several experts' the first."""
    branch = model.get_submodule(branch_paths(site)[0])
    assert isinstance(branch, Branch)
    return branch


def config_values(config: NobleConfig) -> dict[str, Any]:
    """The settings in plain JSON values, those that no file can hold as Python shows them."""
    try:
        return config.to_dict()
    except ConfigError:
        return {name: shown(value) for name, value in vars(config).items()}


def _entry(model: nn.Module, site: Site, branch: Branch | None) -> SiteAccount:
    base = base_flops(site, module_at(model, site.fqn))
    if branch is None:
        return SiteAccount(site, LEFT_OUT, base_flops=base)
    kernels, refusal = None, None
    if not site.unfused:
        refusal = why_no_kernel(branch.key, branch.width, branch.dtype, (branch.out_features, branch.in_features))
        kernels = refusal is None
    no_kernel = refusal.reason if refusal else ""
    return SiteAccount(site, CARRIED, branch.label, base, branch_flops(branch), kernels, no_kernel)


def _kernels(model: nn.Module, listed: tuple[Site, ...], held: dict[str, Branch]) -> tuple[KernelAccount, ...]:
    # A factorized one has the kernels of three plain layers, none its own (`runtime/factorized_kernels.py`).
    fused = [site for site in listed if site.selected and not site.unfused and not site.base]
    biases = [not site.weight and getattr(module_at(model, site.fqn), "bias", None) is not None for site in fused]
    return kernel_accounts(zip((held[site.fqn] for site in fused), biases, strict=True))


def settings_of(config: NobleConfig, act: str) -> dict[str, str]:
    """What is shown of the settings."""
    return {"rank": str(config.rank), "act": act, "preset": config.recipe.name, "capture": config.capture}


def _settings(branches: dict[str, Branch]) -> dict[str, str]:
    config = made_by(branches.values())
    first = next(branch for branch in branches.values() if branch.config is config)
    folded = sum(branch.folded for branch in branches.values())
    return {
        **settings_of(config, first.label),
        "inference": f"{folded} branches are folded: no constants of σ left beside a matrix" if folded else "",
    }


def _adapted(model: nn.Module, held: dict[str, Branch]) -> dict[str, str]:
    """Which adapters there are, and where something is frozen what that saves."""
    told = Counter(part for adapters in named_adapters(model).values() for part in adapters.told().split(", "))
    frozen = not all(parameter.requires_grad for parameter in model.parameters())
    layers = [(module_at(model, fqn), branch) for fqn, branch in held.items() if branch.key]
    fused = [(layer, branch) for layer, branch in layers if layer is not None and "noble" in layer._modules]
    return {
        "adapters": ", ".join(f"{each} at {count} layer{'s' * (count > 1)}" for each, count in told.items()),
        "backward keeps": told_kept(fused) if frozen else "",
    }


def _notes(model: nn.Module) -> dict[str, str]:
    """What a capture fixed: the sizes of the inputs, and that there is no cache."""
    notes = [note for capture, module in captured(model) for note in capture.notes(module)]
    return {"export": "; ".join(notes)} if notes else {}


def _without_graph(without: Refusal | None) -> dict[str, str]:
    """Why there is no graph to look at yet; Dynamo's may be there all the same."""
    return (
        {} if without is None else {"graph": f"noble_fx.explain(model, *inputs) makes one; without: {without.reason}"}
    )
