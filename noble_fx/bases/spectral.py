"""W by its singular values and vectors (SST, arXiv 2405.15481).

y = ((x Vᵀ) ⊙ s) Uᵀ + b          U [N, m]   s [m]   V [m, K]   m = min(K, N), or the rank that was asked for

Here are the form and what is exact about it. Which columns of U and V learn in a step, at which rate and with whose
moments, is an optimizer's: all of them are parameters.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from noble_fx.bases.base import Base
from noble_fx.bases.low_rank import wide
from noble_fx.errors import Refusal


class Spectral(Base):
    """U diag(s) V: `up` = U [N, m], `spectrum` = s [m] ≥ 0, `down` = V [m, K]."""

    kind = "spectral"
    whole = True

    def __init__(self, in_features: int, out_features: int, rank: int, **settings: Any):
        super().__init__(in_features, out_features, rank, **settings)
        self.down = nn.Parameter(torch.empty(rank, in_features))
        self.spectrum = nn.Parameter(torch.empty(rank))
        self.up = nn.Parameter(torch.empty(out_features, rank))

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """((x Vᵀ) ⊙ s) Uᵀ + b"""
        return F.linear(F.linear(x, self.down) * self.spectrum, self.up, bias)

    def merged(self) -> Tensor:
        """U diag(s) V"""
        return (self.up * self.spectrum) @ self.down

    def fill(self, weight: Tensor) -> None:
        """The truncated SVD of W."""
        u, s, v = torch.linalg.svd(wide(weight.detach()), full_matrices=False)
        with torch.no_grad():
            self.up.copy_(u[:, : self.rank])
            self.spectrum.copy_(s[: self.rank])
            self.down.copy_(v[: self.rank])

    def respectralize(self) -> None:
        """The same W with orthonormal U and V again, and s ≥ 0 in order: in place; an optimizer's moments are stale."""
        self.fill(wide(self.merged().detach()))

    def between_steps(self, progress: float, prefix: int | None = None) -> None:
        """s ≥ 0, as singular values are."""
        with torch.no_grad():
            self.spectrum.clamp_(min=0)

    def stepped(self) -> list[Tensor]:
        return [self.spectrum]

    def importances(self) -> Tensor:
        """s, the largest first."""
        return self.spectrum.detach().abs().sort(descending=True).values

    def truncated(self, rank: int) -> Base | Refusal:
        """The parts of the largest s, the largest first."""
        kept = self.spectrum.detach().abs().argsort(descending=True)[:rank]
        base = Spectral.on_meta(self.in_features, self.out_features, rank)
        assert isinstance(base, Spectral)
        base.up = nn.Parameter(self.up.detach()[:, kept].clone())
        base.spectrum = nn.Parameter(self.spectrum.detach()[kept].clone())
        base.down = nn.Parameter(self.down.detach()[kept].clone())
        return base
