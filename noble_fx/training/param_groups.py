"""Optimizer groups with the learning-rate multipliers of the preset.

The multipliers are derived from modules and names each time they are asked for, never stored on parameters, where
deepcopy, `to_empty` and sharding would lose them. They were derived for Adam-family optimizers.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from noble_fx.attach.gone import told_gone
from noble_fx.branches.base import Branch
from noble_fx.errors import ConfigError, check_flag, shown
from noble_fx.layers.registry import linear_weights
from noble_fx.sites.heads import is_head_name
from noble_fx.torch_versions import shapes_before_sharding
from noble_fx.training.groups import Group, Groups
from noble_fx.training.rates import check_rate
from noble_fx.transform import named_branches
from noble_fx.wrappers import own_name


def param_groups(
    model: nn.Module,
    lr: float,
    weight_decay: float = 0.0,
    base: Iterable[Any] | None = None,
    muon: bool = False,
    muon_lr: float | None = None,
) -> Groups:
    """Groups for `torch.optim`: the base parameters as usual, each kind of branch parameter with its own lr and decay.

    Each group has "lr_scale", its multiplier: a loop that sets rates says `g["lr"] = lr * g["lr_scale"]` (`scale_lr`).
    `base`: your own groups (or parameters) for the base model, taken as they are, with whatever keys another library's
    optimizer reads; a group without a rate has `lr`. By default matrices decay and vectors do not. `muon=True` adds the
    key "use_muon" to every group: True for the base model's hidden matrices only, because the multipliers diverge on
    Muon's normalised updates; `muon_lr` is their rate, `lr` by default, and `muon_split` makes two lists of them.
    Frozen parameters are left out. `print(groups)` shows a table.
    Each group has a weight decay of its own, so `weight_decay` belongs here: the optimizer's is for groups without one.
    Raises `ConfigError` when `base` holds a branch parameter, where branches or matrices cannot be told from the rest,
    or nothing is left to train; warns where Muon would get nothing, where `base` leaves something out, and where
    another tool has replaced layers with a branch since.
    """
    branches = named_branches(model)
    check_rate("lr", lr)
    check_rate("weight_decay", weight_decay)
    check_flag("muon", muon, ConfigError)
    _check_muon_lr(muon, muon_lr, base)
    _check_told_apart(model)
    if gone := told_gone(model):
        warnings.warn(gone, stacklevel=2)
    if any(branch.folded for branch in branches.values()):
        raise ConfigError("the model is folded for inference; train the model it was folded from")
    branch_groups: dict[tuple[str, float, float], Group] = {}
    seen: set[int] = set()
    for branch in branches.values():
        for role, parameter, rate in branch.parameter_roles():
            if not parameter.requires_grad or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            decay = weight_decay if rate.decay else 0.0
            whole = role if "." in role else f"{branch.kind}.{role}"
            name = f"{whole} ×{rate.lr:.4g}"
            group = {"name": name, "params": [], "lr": lr * rate.lr, "lr_scale": rate.lr, "weight_decay": decay}
            branch_groups.setdefault((name, rate.lr, decay), group)["params"].append(parameter)
    _check_all_learn(branches, seen)
    own = _default_base(model, branches, lr, weight_decay, muon) if base is None else _given_base(base, seen, lr)
    groups = [*own, *branch_groups.values()]
    if not groups:
        raise ConfigError("the model has no parameter that requires gradients, so there is nothing to train")
    if base is not None:
        _warn_of_left_out(model, groups)
    return _with_muon(groups, lr, muon_lr, base is None) if muon else Groups(groups)


def _warn_of_left_out(model: nn.Module, groups: list[Group]) -> None:
    held = {id(parameter) for group in groups for parameter in group["params"]}
    left = [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in held]
    if left:
        warnings.warn(
            f"{len(left)} parameters that require gradients are in no group ({left[0]!r}, ...): base leaves them "
            "out, so this optimizer does not train them",
            stacklevel=3,
        )


def _check_muon_lr(muon: bool, muon_lr: float | None, base: Any) -> None:
    if muon_lr is None:
        return
    check_rate("muon_lr", muon_lr)
    if not muon or base is not None:
        of = "groups of your own in base have rates of their own" if muon else "there are no groups for Muon; muon=True"
        raise ConfigError(f"muon_lr={shown(muon_lr)} is the rate of the base matrices that Muon takes, and {of}")


def _with_muon(groups: list[Group], lr: float, muon_lr: float | None, own_groups: bool) -> Groups:
    """Every group with "use_muon", those of Muon at their own rate."""
    own = {} if muon_lr is None else {"lr": muon_lr, "lr_scale": float(muon_lr / lr) if lr else 1.0}
    told = [{**group, "use_muon": group.get("use_muon", False)} for group in groups]
    if own_groups and not any(group["use_muon"] for group in told):
        warnings.warn(
            "no group is Muon's: the base model has no hidden matrix that learns, so all are for Adam", stacklevel=3
        )
    return Groups({**group, **own} if group["use_muon"] else group for group in told)


def _check_base(base: Any) -> list[Any]:
    """The user's own groups or parameters; named parameters are none, since torch takes names for all or for none."""
    items = list(base) if isinstance(base, Iterable) and not isinstance(base, str | Mapping | torch.Tensor) else [base]
    for item in items:
        if not isinstance(item, torch.Tensor) and not (isinstance(item, dict) and "params" in item):
            raise ConfigError(
                f"base holds {shown(item)}, which is neither a parameter nor a group {{'params': [...], ...}}"
            )
        if isinstance(item, dict) and "lr" in item:
            check_rate("lr of a group in base", item["lr"])
    return items


def _check_told_apart(model: nn.Module) -> None:
    """Refuse parameters that nobody can tell for a branch's or the base's: their classes are gone, or they are one."""
    named = dict(model.named_parameters())
    if flat := next((name for name in named if name.endswith("_flat_param")), None):  # FSDP1's own word
        raise ConfigError(f"{flat!r} holds base and branches in one; wrap by FSDP(model, use_orig_params=True)")
    branches = tuple(f"{fqn}." for fqn, module in model.named_modules() if isinstance(module, Branch))
    for name, parameter in named.items():
        path = name.rpartition(".")[0]
        like_a_branch = "noble" in path.split(".") and {f"{path}.down", f"{path}.up"} <= named.keys()
        if like_a_branch and parameter.requires_grad and not name.startswith(branches):
            raise ConfigError(
                f"{name!r} is a branch's parameter by its name, and no branch is behind it: an exported or traced copy "
                "has no classes that say how it learns. Train the transformed model itself, and export it afterwards"
            )


def _check_all_learn(branches: dict[str, Branch], seen: set[int]) -> None:
    """Refuse to leave a branch's parameter out of every group without a word (one that was parametrized since)."""
    for fqn, branch in branches.items():
        for name, parameter in branch.named_parameters():
            if parameter.requires_grad and id(parameter) not in seen:
                raise ConfigError(
                    f"{name!r} of the branch at {fqn!r} has no role, so it would be in no group and never learn; undo "
                    "what changed the branch's parameters (a parametrization?), or freeze it"
                )


def _default_base(
    model: nn.Module, branches: dict[str, Branch], lr: float, weight_decay: float, muon: bool
) -> list[Group]:
    taken = {id(p) for branch in branches.values() for p in branch.parameters()}
    shapes = shapes_before_sharding(model)
    hidden: list[nn.Parameter] = []
    matrices: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for fqn, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in taken or not parameter.requires_grad:
                continue
            taken.add(id(parameter))
            dimensions = len(shapes.get(id(parameter), parameter.shape))
            of_a_linear = dimensions == 2 and name in linear_weights(module)  # Muon takes no convolution's [N, K, 1, 1]
            if dimensions < 2:
                vectors.append(parameter)
            elif muon and of_a_linear and not is_head_name(own_name(fqn, model)):
                hidden.append(parameter)
            else:
                matrices.append(parameter)
    groups = [
        {"name": "base matrices (Muon)", "params": hidden, "weight_decay": weight_decay, "use_muon": True},
        {"name": "base matrices", "params": matrices, "weight_decay": weight_decay},
        {"name": "base vectors", "params": vectors, "weight_decay": 0.0},
    ]
    return [{**group, "lr": lr, "lr_scale": 1.0} for group in groups if group["params"]]


def _given_base(base: Iterable[Any], branch_ids: set[int], lr: float) -> list[Group]:
    items = _check_base(base)
    groups = [dict(item) for item in items if isinstance(item, dict)]
    loose = [item for item in items if not isinstance(item, dict)]
    if loose:
        groups.append({"name": "base", "params": loose, "lr": lr})
    for group in groups:
        group.setdefault("lr", lr)  # and not the optimizer's default, from which the branches' rates would differ
        group.setdefault("lr_scale", float(group["lr"] / lr) if lr else 1.0)
        group["params"] = [group["params"]] if isinstance(group["params"], nn.Parameter) else list(group["params"])
        if any(id(p) in branch_ids for p in group["params"]):
            raise ConfigError(
                "base holds parameters of branches, which would then be optimised twice; build it from the parameters "
                "whose name does not contain '.noble.'"
            )
    return groups
