"""How σ of a running model is given masks or gates, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from noble_fx.attach.attach import branch_paths
from noble_fx.attach.restore import restored_on_error
from noble_fx.branches.activations import ScaleShift
from noble_fx.branches.base import Branch
from noble_fx.branches.masks import ChannelMask, gate_of, masks_of
from noble_fx.branches.own_tensors import more_than_its_tensors
from noble_fx.errors import ConfigError, Refusal, shown
from noble_fx.torch_versions import forget_compiled
from noble_fx.training.changing.running import Running, running
from noble_fx.wrappers import own_name

Change = Callable[[Branch, nn.Module], nn.Module | Refusal]  # a branch and its σ -> another σ


def branches_of(found: Running) -> Iterator[tuple[str, Branch]]:
    """Every branch by the name of its place."""
    for site in found.selected:
        for path, branch in zip(branch_paths(site), found.branches(site), strict=True):
            yield own_name(path, found.model), branch


def masks(branch: Branch) -> list[ChannelMask]:
    """The masks in its σ."""
    sigma = branch.sigma()
    return [] if sigma is None else masks_of(sigma)


def gate(branch: Branch) -> ScaleShift | None:
    """The gate behind its σ, or None."""
    sigma = branch.sigma()
    return None if sigma is None else gate_of(sigma)


def share(count: int, widest: int, rank: int) -> int:
    """How many of its `rank` channels speak where `count` of the `widest` branch do: the same share, at least one."""
    return -(-count * rank // widest)


@contextmanager
def asked(branches: Iterable[Branch], count: int, widest: int) -> Iterator[None]:
    """Inside, `count` of the widest branch's channels speak, and of the others the same share."""
    held = [(mask, mask.asked) for branch in branches for mask in masks(branch)]
    try:
        for mask, _ in held:
            mask.ask(share(count, widest, mask.rank))
        yield
    finally:
        for mask, before in held:
            mask.ask(before)


def checked_rank(rank: int, widest: int, name: str) -> int:
    """`rank` as a number of channels of the widest branch; raises `ConfigError`."""
    if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= widest:
        raise ConfigError(f"{name}={shown(rank)} must be a number from 1 to {widest}, the largest rank of the model")
    return rank


def without_places(model: nn.Module) -> Running:
    """A running model whose σ have neither masks nor gates yet; raises `ConfigError` where they have."""
    found = running(model)
    for name, branch in branches_of(found):
        if masks(branch) or gate(branch) is not None:
            raise ConfigError(
                f"σ of the branch at {name!r} has masks or gates of a rule already; close() that rule first"
            )
        if any(parameter.is_meta for parameter in branch.parameters()):
            raise ConfigError(f"the branch at {name!r} is on the meta device and has no values yet")
    return found


def with_places(found: Running, change: Change, verb: str) -> list[Branch]:
    """Give each branch another σ, in place; returns them. Raises `ConfigError`, and the model is as it was."""
    changed: list[Branch] = []
    with restored_on_error(found.model):
        for name, branch in branches_of(found):

            def changing(act: nn.Module, branch: Branch = branch) -> nn.Module | Refusal:
                return change(branch, act)

            if refusal := more_than_its_tensors(branch) or branch.with_sigma(changing):
                raise ConfigError(f"the branch at {name!r} cannot be {verb}: {refusal.reason}")
            changed.append(branch)
        forget_compiled()
    return changed


def check_silent(branch: Branch) -> Refusal | None:
    """Why its last channels cannot be silenced alone: σ mixes them in a way that is not known; None where it is."""
    if branch.rank < 2:
        return None
    answer = branch.shortened(branch.rank - 1, 1.0, torch.empty(0, branch.rank))  # no rows: nothing is measured
    return answer if isinstance(answer, Refusal) else None
