"""A linear map of low rank as the two matrices that learn: ΔW = s U D, ΔW [N, K], U [N, r], D [r, K]."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Factors:
    """`down` [r, K] and `up` [N, r] with the number s between them; `name` tells several of one branch apart."""

    name: str
    down: nn.Parameter
    up: nn.Parameter
    scale: float = 1.0
