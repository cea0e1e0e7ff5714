"""The optimizers of a model, changed together with its branches: what they hold and remember, and their groups."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from noble_fx.attach.attach import named_branches
from noble_fx.errors import ConfigError, shown
from noble_fx.training.changing.optimizer_groups import changed_groups
from noble_fx.training.changing.optimizer_state import carried_state
from noble_fx.training.changing.parameter_changes import Change
from noble_fx.training.groups import Group


def as_optimizers(optimizer: Any) -> list[Optimizer]:
    """One optimizer, several side by side (Muon and AdamW), or none; raises `ConfigError` for anything else."""
    if optimizer is None:
        return []
    listed = list(optimizer) if isinstance(optimizer, Iterable) and not isinstance(optimizer, str) else [optimizer]
    for each in listed:
        if not isinstance(each, Optimizer):
            raise ConfigError(f"optimizer={shown(each)} must be a torch.optim.Optimizer, or a list of them")
        if isinstance(each, torch.optim.LBFGS):
            raise ConfigError("LBFGS remembers all parameters in one row; build a new one after the change")
    return listed


@contextmanager
def put_back_on_error(optimizers: Sequence[Optimizer]) -> Iterator[None]:
    """Inside, whatever is raised leaves groups and state as they were."""
    before = [
        ([(group, {**group, "params": list(group["params"])}) for group in each.param_groups], dict(each.state))
        for each in optimizers
    ]
    try:
        yield
    except BaseException:
        for each, (groups, state) in zip(optimizers, before, strict=True):
            for group, content in groups:
                group.clear()
                group.update(content)
            each.param_groups[:] = [group for group, _ in groups]
            each.state.clear()
            each.state.update(state)
        raise


def check_held(optimizers: Sequence[Optimizer], changes: Iterable[Change]) -> None:
    """Refuse to leave a parameter that learns in no optimizer; raises `ConfigError`."""
    held = {id(p) for each in optimizers for group in each.param_groups for p in group["params"]}
    for change in changes:
        learns = change.old if change.new is None or not change.added else change.new
        if optimizers and learns.requires_grad and id(change.old) not in held:
            what = f"no parameter like {change.name!r}" if change.added else f"no {change.name!r}"
            raise ConfigError(
                f"the optimizer holds {what}, which learns; give all optimizers of the model, as a list, or call this "
                "without and build a new one from noble_fx.param_groups(model, ...)"
            )


def apply_changes(optimizers: Sequence[Optimizer], model: nn.Module, changes: Sequence[Change]) -> None:
    """Let the optimizers hold what `model`, changed by now, has; an error comes half way: `put_back_on_error`."""
    order: dict[int, int] = {}
    for branch in named_branches(model).values():
        for _, parameter, _ in branch.parameter_roles():
            order.setdefault(id(parameter), len(order))
    for each in optimizers:
        before = [_shown(group) for group in each.param_groups]
        groups = changed_groups(each.param_groups, changes, order)
        _exchange_state(each, changes)
        each.param_groups[:] = groups
        if any("initial_lr" in group for group in groups) and before != [_shown(group) for group in groups]:
            warnings.warn(
                "The optimizer's groups have changed. A learning-rate scheduler that was built before does not know "
                "the new ones: build it anew. Its base rates are in the groups ('initial_lr'). Within Hugging Face's "
                "Trainer: stop, save, load the checkpoint by noble_fx.from_pretrained, and go on with a new Trainer.",
                stacklevel=4,
            )


def _shown(group: Group) -> tuple[Any, ...]:
    return group.get("name"), float(group["lr"]), float(group.get("initial_lr", 0))


def _exchange_state(optimizer: Optimizer, changes: Sequence[Change]) -> None:
    for change in changes:
        if change.added or change.old not in optimizer.state:
            continue
        state = optimizer.state.pop(change.old)
        if change.new is not None:
            optimizer.state[change.new] = carried_state(state, change, type(optimizer).__qualname__)
