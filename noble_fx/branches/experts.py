"""Branches that do not sit in a layer of their own: beside a bare parameter, or one per expert of a stacked weight."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from noble_fx.branches import activations
from noble_fx.branches.base import Branch
from noble_fx.branches.noble import NobleBranch


class BranchGroup(nn.ModuleDict):
    """The branches of one module's bare parameters, by parameter name: `attn.noble.in_proj_weight.down`, …"""


class StackedBranches(nn.ModuleList):
    """One branch per matrix of a stacked weight, of any kind.

    x [.., E, T, K] -> [.., E, T, N], or with `offsets` [E] rows sorted by expert, x [S, K] -> [S, N].
    """

    @property
    def enabled(self) -> bool:
        """Off only inside `noble_fx.disabled`."""
        return all(branch.enabled for branch in self)

    def branches(self) -> Iterator[Branch]:
        """Each expert's, in their order."""
        yield from (branch for branch in self if isinstance(branch, Branch))

    def forward(self, x: Tensor, offsets: Tensor | None = None) -> Tensor:
        return self._dense(x) if offsets is None else self._grouped(x, offsets)

    def _dense(self, x: Tensor) -> Tensor:
        return torch.stack([branch(x.select(-3, e)) for e, branch in enumerate(self)], dim=-3)

    def _grouped(self, x: Tensor, offsets: Tensor) -> Tensor:
        # Every expert's branch over all rows, its own rows kept: no shape depends on the routing.
        rows = torch.arange(x.shape[0], device=x.device, dtype=offsets.dtype)
        expert = torch.bucketize(rows, offsets, right=True)
        y: Any = 0
        for e, branch in enumerate(self):
            mine = (expert == e).unsqueeze(-1)
            y = y + torch.where(mine, branch(torch.where(mine, x, 0)), 0)
        return y


class ExpertBranches(StackedBranches):
    """NOBLE's branches of a stacked weight, computed together: products over all experts at once."""

    def _stack(self, name: str) -> Tensor:
        return torch.stack([getattr(branch, name) for branch in self])

    def _dense(self, x: Tensor) -> Tensor:
        first = cast(NobleBranch, self[0])
        h = torch.matmul(x, self._stack("down").transpose(-2, -1))
        if first.down_bias is not None:
            h = h + self._stack("down_bias").unsqueeze(-2)
        t = [activations.evaluate(cast(NobleBranch, branch).act, h.select(-3, e)) for e, branch in enumerate(self)]
        y = torch.matmul(torch.stack(t, dim=-3), self._stack("up").transpose(-2, -1))
        return y if first.up_bias is None else y + self._stack("up_bias").unsqueeze(-2)


def expert_branches(branches: Sequence[Branch]) -> StackedBranches:
    """The holder for the branches of a stacked weight, in the order of its experts."""
    together = all(type(branch) is NobleBranch for branch in branches)
    return ExpertBranches(branches) if together else StackedBranches(branches)
