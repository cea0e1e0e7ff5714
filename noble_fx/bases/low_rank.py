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


def spectral_factors(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A [N, k] and B [k, K] with A B the best approximation of W [N, K] of rank k, in W's dtype."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    u, s, v = torch.linalg.svd(weight.detach().to(wide), full_matrices=False)
    root = s[:rank].sqrt()
    return (u[:, :rank] * root).to(weight.dtype), (root[:, None] * v[:rank]).to(weight.dtype)
