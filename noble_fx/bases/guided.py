"""A form of W that is guided by W itself, which fades out (self-guided training, arXiv 2406.16450).

y = α x Wᵀ + (1 − α) base(x) + b          α from 1 to 0 by a cosine over the first share `guide` of training

At α = 1 it is the dense layer exactly, at α = 0 its base. α is a buffer, which `noble_fx.step` sets.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from noble_fx.bases.base import Base
from noble_fx.errors import ConfigError, Refusal, shown


class Guided(Base):
    """Any base in `inner`, beside W in `weight` [N, K]; `alpha` [] is how much of y is W's."""

    alpha: Tensor
    inner: Base

    def __init__(self, inner: Base, guide: float):
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.rank = inner.in_features, inner.out_features, inner.rank
        self.kind, self.settings, self.guide = inner.kind, inner.settings, float(guide)
        self.error, self.method = inner.error, inner.method
        self.weight = nn.Parameter(torch.empty(inner.out_features, inner.in_features, dtype=inner.dtype))
        self.register_buffer("alpha", torch.ones(()))
        self.inner = inner

    @classmethod
    def on_top(cls, inner: Base, guide: Any) -> Guided:
        """One without values around a base without values; raises `ConfigError` for what is no share of training."""
        if isinstance(guide, bool) or not isinstance(guide, int | float) or not 0 < guide <= 1:
            raise ConfigError(f"guide={shown(guide)} of a base is no share of training between 0 and 1")
        with torch.device("meta"):
            return cls(inner, guide)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """α (x Wᵀ + b) + (1 − α) (base(x) + b)"""
        dense, structured = F.linear(x, self.weight, bias), self.inner(x, bias)
        alpha = self.alpha.to(dense.dtype)
        mixed: Tensor = alpha * dense + (1 - alpha) * structured
        return mixed

    def merged(self) -> Tensor:
        """α W + (1 − α) W_base"""
        alpha = self.alpha.to(self.weight.dtype)
        mixed: Tensor = alpha * self.weight + (1 - alpha) * self.inner.merged()
        return mixed

    def fill(self, weight: Tensor) -> None:
        """W as it is, and the base's form of it."""
        with torch.no_grad():
            self.weight.copy_(weight)
        self.inner.fill(weight)

    def draw(self) -> None:
        """The guide alone at first, and what the base draws."""
        self.alpha.fill_(1.0)
        self.inner.draw()

    def between_steps(self, progress: float, prefix: int | None = None) -> None:
        """The α of this share of training, and what is due to the base."""
        self.alpha.fill_(self.alpha_at(progress))
        self.inner.between_steps(progress, prefix)

    def stepped(self) -> list[Tensor]:
        return [self.alpha, *self.inner.stepped()]

    @property
    def widths(self) -> int:
        return self.inner.widths

    def lasso(self) -> Tensor | None:
        return self.inner.lasso()

    def alpha_at(self, progress: float) -> float:
        """½ (1 + cos(π progress / guide)), and 0 from there on."""
        return 0.5 * (1 + math.cos(math.pi * progress / self.guide)) if progress < self.guide else 0.0

    def importances(self) -> Tensor | Refusal:
        return Refusal(f"a base of kind {self.kind!r} is guided by its W until {self.guide:.0%} of training")

    def truncated(self, rank: int) -> Base | Refusal:
        return Refusal(f"a base of kind {self.kind!r} is guided by its W until {self.guide:.0%} of training")

    @property
    def label(self) -> str:
        return f"guided {self.inner.label}"

    def flops(self) -> int:
        return 2 * self.in_features * self.out_features + self.inner.flops()

    def described(self) -> dict[str, Any]:
        return {**self.inner.described(), "guide": self.guide}
