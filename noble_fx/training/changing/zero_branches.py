"""`noble_fx.zero_branches`: branches that start at nothing, so that training goes on from a model as it was."""

from __future__ import annotations

from torch import nn

from noble_fx.attach.attach import named_branches
from noble_fx.attach.restore import restored_on_error
from noble_fx.branches.own_tensors import more_than_its_tensors
from noble_fx.errors import ConfigError
from noble_fx.wrappers import own_name


def zero_branches(model: nn.Module) -> nn.Module:
    """Set U of every branch to zero, in place: the base model's function exactly, from which the branches learn.

    Returns the model. Call it after `transform` and before training, before or after the model is wrapped. Raises
    `ConfigError` where there are no branches, or one that cannot be zero; the model is then as it was.
    """
    branches = named_branches(model)
    if not branches:
        raise ConfigError("the model carries no branches; call noble_fx.transform first")
    with restored_on_error(model) as before:
        before.keep(parameter for branch in branches.values() for parameter in branch.parameters())
        for fqn, branch in branches.items():
            if refusal := more_than_its_tensors(branch) or branch.silence():
                raise ConfigError(f"the branch at {own_name(fqn, model)!r} cannot be zero: {refusal.reason}")
    return model
