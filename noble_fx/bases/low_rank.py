"""W as the product of two thin matrices.

y = (x Bᵀ) Aᵀ + b          A [N, k]   B [k, K]          k (N + K) numbers in the place of N K
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from noble_fx.bases.base import Base
from noble_fx.errors import Refusal


class LowRank(Base):
    """A B, parameters `up` = A [N, k] and `down` = B [k, K]."""

    kind = "factorized"
    axes: ClassVar[Mapping[str, tuple[str, ...]]] = {"down": ("k", "K"), "up": ("N", "k")}

    def __init__(self, in_features: int, out_features: int, rank: int, **settings: Any):
        super().__init__(in_features, out_features, rank, **settings)
        self.down = nn.Parameter(torch.empty(rank, in_features))
        self.up = nn.Parameter(torch.empty(out_features, rank))

    @classmethod
    def of(cls, up: Tensor, down: Tensor) -> LowRank:
        """From A [N, k] and B [k, K]."""
        base = cls.on_meta(down.shape[1], up.shape[0], down.shape[0])
        assert isinstance(base, cls)
        base.down, base.up = nn.Parameter(down.detach().clone()), nn.Parameter(up.detach().clone())
        return base

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """(x Bᵀ) Aᵀ + b"""
        return F.linear(F.linear(x, self.down), self.up, bias)

    def merged(self) -> Tensor:
        """A B"""
        return self.up @ self.down

    def fill(self, weight: Tensor) -> None:
        """The truncated SVD of W, √S on both sides (spectral initialisation), so both factors learn alike."""
        up, down = spectral_factors(weight, self.rank)
        with torch.no_grad():
            self.up.copy_(up)
            self.down.copy_(down)

    def importances(self) -> Tensor:
        """The singular values of A B."""
        return torch.linalg.svdvals(wide(self.merged().detach()))[: self.rank]

    def truncated(self, rank: int) -> Base | Refusal:
        """The best one of that rank: the truncated SVD of A B."""
        return LowRank.of(*spectral_factors(self.merged(), rank))


def wide(tensor: Tensor) -> Tensor:
    """In float32 at least, in which a decomposition is made."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def spectral_factors(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A [.., N, k] and B [.., k, K] with A B the best approximation of W [.., N, K] of rank k, in W's dtype."""
    u, s, v = torch.linalg.svd(wide(weight.detach()), full_matrices=False)
    root = s[..., :rank].sqrt()
    return (
        (u[..., :rank] * root[..., None, :]).to(weight.dtype),
        (root[..., None] * v[..., :rank, :]).to(weight.dtype),
    )
