"""Branches that do not sit in a layer of their own: beside a bare parameter, or one per expert of a stacked weight."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from noble_fx.branches import activations
from noble_fx.branches.noble import NobleBranch


class BranchGroup(nn.ModuleDict):
    """The branches of one module's bare parameters, by parameter name: `attn.noble.in_proj_weight.down`, …"""


class ExpertBranches(nn.ModuleList):
    """One branch per matrix of a stacked weight, computed together: products over all experts at once.

    x [.., E, T, K] -> [.., E, T, N], or with `offsets` [E] rows sorted by expert, x [S, K] -> [S, N].
    """

    @property
    def enabled(self) -> bool:
        """Off only inside `noble_fx.disabled`."""
        return all(branch.enabled for branch in self)

    def _stack(self, name: str) -> Tensor:
        return torch.stack([getattr(branch, name) for branch in self])

    def forward(self, x: Tensor, offsets: Tensor | None = None) -> Tensor:
        if offsets is not None:
            return self._grouped(x, offsets)
        h = torch.matmul(x, self._stack("down").transpose(-2, -1))
        if self[0].down_bias is not None:
            h = h + self._stack("down_bias").unsqueeze(-2)
        t = [activations.evaluate(cast(NobleBranch, branch).act, h.select(-3, e)) for e, branch in enumerate(self)]
        y = torch.matmul(torch.stack(t, dim=-3), self._stack("up").transpose(-2, -1))
        return y if self[0].up_bias is None else y + self._stack("up_bias").unsqueeze(-2)

    def _grouped(self, x: Tensor, offsets: Tensor) -> Tensor:
        # Every expert's σ over all rows, its own rows kept: [S, r] is narrow, and no shape depends on the routing.
        rows = torch.arange(x.shape[0], device=x.device, dtype=offsets.dtype)
        expert = torch.bucketize(rows, offsets, right=True)
        y: Any = 0
        for e, branch in enumerate(self):
            mine = (expert == e).unsqueeze(-1)
            y = y + torch.where(mine, branch(torch.where(mine, x, 0)), 0)
        return y


def expert_branches(branches: list[NobleBranch]) -> ExpertBranches:
    """The holder for the branches of a stacked weight, in the order of its experts."""
    return ExpertBranches(branches)
