"""W as a product of full width whose parts are ordered by ordered dropout, to be cut afterwards (Maestro, 2308.14929).

y = (x B[:p]ᵀ) A[:, :p]ᵀ + b          A [N, m]   B [m, K]   m = min(K, N), or the rank that was asked for

In training p is what `noble_fx.step` drew: all of m, but at one layer of the model in each step. In eval mode it is m.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from noble_fx.bases.base import Base
from noble_fx.bases.low_rank import LowRank, wide
from noble_fx.errors import Refusal


class Ordered(LowRank):
    """A B, of which only the first `prefix` [] parts run in training; `up` = A [N, m] and `down` = B [m, K]."""

    kind = "ordered"
    whole = True
    prefix: Tensor

    def __init__(self, in_features: int, out_features: int, rank: int, **settings: Any):
        super().__init__(in_features, out_features, rank, **settings)
        self.register_buffer("prefix", torch.tensor(rank))

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """(x B[:p]ᵀ) A[:, :p]ᵀ + b, by a mask: p is a tensor, and shapes stay what they are"""
        h = F.linear(x, self.down)
        if self.training:
            h = h * self._kept(h)
        return F.linear(h, self.up, bias)

    def merged(self) -> Tensor:
        """A[:, :p] B[:p]"""
        return (self.up * self._kept(self.up)) @ self.down if self.training else self.up @ self.down

    def _kept(self, like: Tensor) -> Tensor:
        """1 for the first p parts, 0 for the others [m]."""
        return (torch.arange(self.rank, device=like.device) < self.prefix).to(like.dtype)

    def draw(self) -> None:
        """All of its width."""
        self.prefix.fill_(self.rank)

    def stepped(self) -> list[Tensor]:
        return [self.prefix]

    @property
    def widths(self) -> int:
        return self.rank

    def between_steps(self, progress: float, prefix: int | None = None) -> None:
        """The width of the next step."""
        self.prefix.fill_(self.rank if prefix is None else prefix)

    def tails(self) -> tuple[Tensor, Tensor]:
        """‖A[:, j:]‖ and ‖B[j:]‖ of each part j [m]; where a tail is zero, so is its gradient."""
        return _tail_norms(self.up.t()), _tail_norms(self.down)

    def lasso(self) -> Tensor:
        """Σ over the parts j of ‖A[:, j:]‖ + ‖B[j:]‖."""
        of_up, of_down = self.tails()
        return of_up.sum() + of_down.sum()

    def importances(self) -> Tensor:
        """‖A[:, j:]‖ ‖B[j:]‖ of each part j: what is lost at most without it and those behind it."""
        with torch.no_grad():
            of_up, of_down = self.tails()
            return of_up * of_down

    def truncated(self, rank: int) -> Base | Refusal:
        """The first parts."""
        base = Ordered.on_meta(self.in_features, self.out_features, rank)
        assert isinstance(base, Ordered)
        base.up = torch.nn.Parameter(self.up.detach()[:, :rank].clone())
        base.down = torch.nn.Parameter(self.down.detach()[:rank].clone())
        base.prefix = torch.tensor(rank, device=self.prefix.device)
        return base


def _tail_norms(rows: Tensor) -> Tensor:
    """‖rows[j:]‖ for each j [m]."""
    squares = wide(rows).square().sum(1).flip(0).cumsum(0).flip(0)
    there = squares > 0
    return torch.where(there, squares, 1).sqrt() * there
