"""The rates of an optimizer's groups: what each role learns at, and whether their ratios are still the preset's."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.weak import WeakIdKeyDictionary

from noble_fx.errors import ConfigError, shown

_TOLERANCE = 1e-3  # what a schedule's rounding may make of a ratio
_warned = WeakIdKeyDictionary()  # a first group's parameter -> what has been said of its optimizer


def rates_by_role(optimizer: Any, roles: Mapping[int, str]) -> dict[str, float]:
    """The largest rate of each role, of parameters by identity; "base" for others, "muon" for those that Muon takes."""
    rates: dict[str, float] = {}
    for group in _groups(optimizer):
        other = "muon" if group.get("use_muon") else "base"
        for role in dict.fromkeys(roles.get(id(parameter), other) for parameter in group["params"]):
            rates[role] = max(float(group["lr"]), rates.get(role, 0.0))
    order = [*dict.fromkeys(roles.values()), "base", "muon"]
    return {role: rates[role] for role in order if role in rates}


def warn_of_rates(optimizer: Any, learning: Iterable[nn.Parameter]) -> None:
    """Warn, once for an optimizer, of rates whose ratios were lost, and of branches that are in no group."""
    groups = [group for group in _groups(optimizer) if group["params"]]
    for each in optimizers_in(optimizer):
        warn_of_ratios(each)
    held = {id(parameter) for group in groups for parameter in group["params"]}
    learning = list(learning)
    missing = sum(id(parameter) not in held for parameter in learning)
    if missing and groups:
        _warn_once(
            "missing",
            groups[0]["params"][0],
            f"{missing} of {len(learning)} tensors of branches are in no group of the optimizer, which was made before "
            "noble_fx.transform or without noble_fx.param_groups(model, lr); they do not learn by it",
        )


def warn_of_ratios(optimizer: Any, level: int = 5) -> None:
    """Warn, once for an optimizer, where its rates are no more a schedule's times each group's own multiplier."""
    own = [group for group in optimizer.param_groups if group["params"]]
    if own and (lost := lost_ratios(own)):
        _warn_once("ratios", own[0]["params"][0], lost, level)


def lost_ratios(groups: Iterable[Mapping[str, Any]]) -> str:
    """What is wrong with groups whose lr / lr_scale differ, or "": one schedule for all gives one number."""
    ratios: dict[str, float] = {}
    for i, group in enumerate(groups):
        if group.get("lr_scale"):
            name = str(group.get("name", f"group {i}"))
            ratios[name if name not in ratios else f"{name} ({i})"] = float(group["lr"]) / group["lr_scale"]
    if not ratios or max(ratios.values()) - min(ratios.values()) <= _TOLERANCE * max(ratios.values()):
        return ""
    usual = _most_common(ratios.values())
    odd = [f"{name} {ratio:.3g}" for name, ratio in ratios.items() if not math.isclose(ratio, usual, rel_tol=1e-3)]
    return (
        f"a scheduler has changed how the groups' rates relate: lr / lr_scale is {usual:.3g}, but of {', '.join(odd)}. "
        "Set the rates by noble_fx.scale_lr(optimizer, lr) in every step, or by a scheduler that multiplies (LambdaLR)"
    )


def _most_common(ratios: Iterable[float]) -> float:
    ratios = list(ratios)
    return max(ratios, key=lambda one: sum(math.isclose(one, other, rel_tol=_TOLERANCE) for other in ratios))


def _warn_once(about: str, key: torch.Tensor, text: str, level: int = 4) -> None:
    said = _warned.setdefault(key, set())
    if about not in said:
        said.add(about)
        warnings.warn(text, stacklevel=level)


def optimizers_in(optimizer: Any) -> list[Any]:
    """One optimizer or several as a list; raises `ConfigError` for what is none."""
    several = list(optimizer) if isinstance(optimizer, list | tuple) else [optimizer]
    for each in several:
        if not isinstance(getattr(each, "param_groups", None), list):
            raise ConfigError(f"optimizer={shown(each)} has no param_groups; pass a torch.optim.Optimizer, or several")
    return several


def _groups(optimizer: Any) -> list[dict[str, Any]]:
    return [group for each in optimizers_in(optimizer) for group in each.param_groups]
