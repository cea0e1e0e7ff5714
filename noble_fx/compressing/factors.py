"""A matrix as a product of two, for every rank at once, and what each rank loses.

W [N, K] ≈ A B        A = left[:, :k]   B = right[:k]        k < N K / (N + K), or nothing is saved
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Factors:
    """`left` [N, m] and `right` [m, K] with the best directions first, and Σ‖lost‖² at each rank [m + 1].

    `total` is what errors are shares of; `spectrum` [m] says how much each direction is worth to the method itself.
    """

    left: Tensor
    right: Tensor
    losses: Tensor
    spectrum: Tensor
    total: float

    def at(self, rank: int) -> tuple[Tensor, Tensor]:
        """A [N, k] and B [k, K]."""
        return self.left[:, :rank], self.right[:rank]

    @property
    def shares(self) -> Tensor:
        """The share of the output's variation that is lost at each rank [m + 1]."""
        return torch.zeros_like(self.losses) if self.total <= 0 else self.losses.clamp(min=0) / self.total

    def error(self, rank: int) -> float:
        """The relative error at a rank: the root of the share that is lost."""
        return float(self.shares[rank].sqrt())


def break_even(outputs: int, inputs: int, extra: int = 0) -> int:
    """The largest rank of an [N, K] matrix at which two factors, and `extra` numbers besides, are fewer numbers."""
    return max(0, (outputs * inputs - extra - 1) // (outputs + inputs))


def allowed_ranks(outputs: int, inputs: int, step: int, extra: int = 0) -> range:
    """The multiples of `step` up to break-even, or of a layer too small for one, every rank."""
    limit = break_even(outputs, inputs, extra)
    return range(step, limit + 1, step) if limit >= step else range(1, limit + 1)


def losses(weight: Tensor, left: Tensor, right: Tensor, inputs: Tensor) -> Tensor:
    """tr (W − A B) S (W − A B)ᵀ [m + 1] at every rank, for inputs with Σ xᵀx = S [K, K]."""
    moved = right @ inputs
    both = (left.T @ left) * (moved @ right.T)
    crossed = (moved * (left.T @ weight)).sum(1)
    squares = both.cumsum(0).cumsum(1).diagonal()
    found = ((weight @ inputs) * weight).sum() - 2 * crossed.cumsum(0) + squares
    return torch.cat([((weight @ inputs) * weight).sum().reshape(1), found]).clamp(min=0)
