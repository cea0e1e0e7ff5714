"""Rates that keep their ratios: one step of a schedule, and what counts as a rate."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import torch

from noble_fx.errors import ConfigError, shown
from noble_fx.training.group_rates import optimizers_in, warn_of_ratios


def scale_lr(optimizer: Any, lr: Any) -> None:
    """Set the rate of every group to `lr` times its own "lr_scale": one step of a schedule, of one optimizer or a list.

    Warns, once for an optimizer, where something else has made the rates unequal to that. Raises `ConfigError` for a
    group without an "lr_scale", which `param_groups` did not make.
    """
    check_rate("lr", lr)
    optimizers = optimizers_in(optimizer)
    for each in optimizers:
        for i, group in enumerate(each.param_groups):
            if "lr_scale" not in group:
                raise ConfigError(
                    f"group {i} of the optimizer has no 'lr_scale': it was not built by noble_fx.param_groups, or its "
                    "state was read from one that was not; give it one"
                )
        if not any(isinstance(group["lr"], torch.Tensor) for group in each.param_groups):  # to read one waits for it
            warn_of_ratios(each, level=4)
    for group in (group for each in optimizers for group in each.param_groups):
        rate = lr * group["lr_scale"]
        if isinstance(group["lr"], torch.Tensor):  # a captured step reads this very tensor
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def check_rate(name: str, rate: Any) -> None:
    """Refuse what is no rate; one in a tensor is read by a captured step."""
    number = isinstance(rate, Real) and not isinstance(rate, bool) and 0 <= float(rate) < math.inf
    if not number and not (isinstance(rate, torch.Tensor) and rate.numel() == 1):
        raise ConfigError(f"{name}={shown(rate)} must be a finite number ≥ 0")
