"""Where ω and φ of a branch started from, which tells how far they have moved."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from noble_fx.branches.base import Branch
from noble_fx.branches.drawing import drawing
from noble_fx.distributed import whole

ROLES = ("frequency", "phase")


def moved(branch: Branch) -> Iterator[tuple[str, Tensor]]:
    """(role, how far it is from where it started) of each ω and φ, [r] on the CPU; of a sharded one every rank's.

    It started as it was drawn: a seed draws the same again. Without a seed nobody can tell, so it counts from the first
    time that this is asked of the branch, or of the one that it is a copy of.
    """
    if branch.origin is None:
        branch.origin = _drawn(branch)
    for name, role, parameter in _named(branch):
        now = whole(parameter.detach()).cpu()
        start = branch.origin.get(name)
        if start is None or start.shape != now.shape:
            start = branch.origin[name] = now.clone()
        wide = torch.promote_types(now.dtype, torch.float32)
        yield role, now.to(wide) - start.to(now.dtype).to(wide)


def _named(branch: Branch) -> Iterator[tuple[str, str, Tensor]]:
    roles = {id(parameter): role for role, parameter, _ in branch.parameter_roles()}
    for name, parameter in branch.named_parameters():
        if roles.get(id(parameter)) in ROLES:
            yield name, roles[id(parameter)], parameter


def drawn_again(branch: Branch) -> Branch | None:
    """A new branch as the seed drew this one; None where there is no seed, or the branch was not drawn by it."""
    if branch.config.seed is None or not branch.drawn_as or branch.folded:
        return None
    outputs = branch.site.out_features if branch.site is not None else branch.out_features  # a head may be longer now
    with torch.no_grad(), drawing(branch.config, branch.drawn_as):
        return branch.fresh(outputs)


def _drawn(branch: Branch) -> dict[str, Tensor]:
    """ω and φ by name as they were drawn; nothing where nobody can draw them again."""
    again = drawn_again(branch)
    return {} if again is None else {name: parameter.detach() for name, _, parameter in _named(again)}
