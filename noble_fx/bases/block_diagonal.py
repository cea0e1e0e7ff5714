"""W in blocks, in the two forms of StructuredFFN (arXiv 2406.16450); g blocks, blockdiag(x; V) is one product a block.

dense      y = blockdiag(x; V) Aᵀ + b                    V [g, k/g, K/g]   A [N, k]
shuffle    y = P blockdiag(P blockdiag(x; V); U) + b     V [g, k/g, K/g]   U [g, N/g, k/g]      (Monarch)

P turns [g, m] channels into [m, g]: without it between the two, no block of x would reach another block of y. So each
block [N/g, K/g] of W (of its rows in the order of the last P) is a matrix of rank k/g², and each block [N, K/g] of the
dense form one of rank k/g: both are filled by an SVD of each block, the best there is.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from noble_fx.bases.base import Base
from noble_fx.bases.low_rank import spectral_factors
from noble_fx.errors import ConfigError, shown

FORMS = ("dense", "shuffle")


class BlockDiagonal(Base):
    """`down` = V [g, k/g, K/g], and `up`: A [N, k], or with form="shuffle" U [g, N/g, k/g]."""

    kind = "block_diagonal"
    defaults: ClassVar[Mapping[str, Any]] = MappingProxyType({"blocks": 4, "form": "dense"})

    def __init__(self, in_features: int, out_features: int, rank: int, **settings: Any):
        super().__init__(in_features, out_features, rank, **settings)
        g = self.settings["blocks"]
        self.shuffled = self.settings["form"] == "shuffle"
        self.down = nn.Parameter(torch.empty(g, rank // g, in_features // g))
        up = (g, out_features // g, rank // g) if self.shuffled else (out_features, rank)
        self.up = nn.Parameter(torch.empty(up))

    @classmethod
    def check(cls, settings: Mapping[str, Any]) -> None:
        blocks, form = settings["blocks"], settings["form"]
        if isinstance(blocks, bool) or not isinstance(blocks, int) or blocks < 2:
            raise ConfigError(f"blocks={shown(blocks)} of base={cls.kind!r} must be an integer ≥ 2")
        if form not in FORMS:
            raise ConfigError(f"form={shown(form)} of base={cls.kind!r} must be {' or '.join(map(repr, FORMS))}")

    @classmethod
    def unit(cls, settings: Mapping[str, Any]) -> int:
        """blocks, or blocks² with a shuffle, which spreads the channels of each block over all."""
        return int(settings["blocks"] ** (2 if settings["form"] == "shuffle" else 1))

    @classmethod
    def misfit(cls, in_features: int, out_features: int, rank: int, settings: Mapping[str, Any]) -> str:
        g, shuffled = settings["blocks"], settings["form"] == "shuffle"
        sizes = [("K", in_features), *[("N", out_features)] * shuffled]
        if wrong := next((f"{name} = {size}" for name, size in sizes if size % g), ""):
            whole = [d for d in range(2, min(size for _, size in sizes) + 1) if not any(s % d for _, s in sizes)]
            would = f"blocks={', '.join(map(str, whole[:6]))} would" if whole else "nor would any other number"
            return f"blocks={g} do not divide {wrong}; {would}"
        unit = cls.unit(settings)
        if rank % unit:
            below, above = rank // unit * unit, -(-rank // unit) * unit
            near = f"{below} or {above}" if below else str(above)
            return (
                f"its rank {rank} must be a multiple of {'blocks²' if shuffled else 'blocks'} = {unit}, such as {near}"
            )
        return super().misfit(in_features, out_features, rank, settings)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """blockdiag(x; V), then A or the second blocks, and b"""
        h = torch.einsum("...gc,gqc->...gq", x.unflatten(-1, (self.settings["blocks"], -1)), self.down)
        if not self.shuffled:
            return F.linear(h.flatten(-2), self.up, bias)
        h = h.transpose(-1, -2).flatten(-2).unflatten(-1, (self.settings["blocks"], -1))
        y = torch.einsum("...gq,gnq->...gn", h, self.up).transpose(-1, -2).flatten(-2)
        return y if bias is None else y + bias

    def merged(self) -> Tensor:
        """W [N, K]"""
        g, q, _ = self.down.shape
        if not self.shuffled:
            return torch.einsum("ngq,gqc->ngc", self.up.unflatten(1, (g, q)), self.down).flatten(1)
        left, right = self._paired()
        return (left @ right).permute(2, 0, 1, 3).reshape(self.out_features, self.in_features)

    def _paired(self) -> tuple[Tensor, Tensor]:
        """U and V of each pair of blocks: [g, g, N/g, k/g²] and [g, g, k/g², K/g], of y's block, then of x's."""
        g, q, c = self.down.shape
        # Channel (a, i) of h goes by P to i g + a = (b, j): i = b q/g + s, j = s g + a.
        left = self.up.reshape(g, -1, q // g, g).permute(0, 3, 1, 2)
        right = self.down.reshape(g, g, q // g, c).transpose(0, 1)
        return left, right

    def fill(self, weight: Tensor) -> None:
        """The truncated SVD of each block of W, √S on both sides: the nearest W of this form."""
        g, q, c = self.down.shape
        if self.shuffled:
            up, down = spectral_factors(weight.reshape(-1, g, g, c).permute(1, 2, 0, 3), q // g)
            up, down = up.permute(0, 2, 3, 1), down.transpose(0, 1)
        else:
            up, down = spectral_factors(weight.unflatten(1, (g, c)).transpose(0, 1), q)
            up = up.transpose(0, 1)
        with torch.no_grad():
            self.up.copy_(up.reshape(self.up.shape))
            self.down.copy_(down.reshape(self.down.shape))
