"""W as a product of two thin matrices and a few numbers at fixed random places (SLTrain, arXiv 2406.02214).

y = x (s A B + S)ᵀ + b          s = alpha / k   S: int(density N K) numbers that learn, at places that do not

What it saves is memory, not time: in each call W is made of its parts for one dense product, and made again in the
backward, so that only the parts are kept. Merged it is one dense W, exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from noble_fx.bases.base import Base
from noble_fx.bases.low_rank import spectral_factors, wide
from noble_fx.errors import ConfigError, shown

_INT32 = torch.iinfo(torch.int32).max  # beyond it a place needs 8 bytes


class SparseLowRank(Base):
    """s A B + S: `up` = A [N, k], `down` = B [k, K], `values` [n] at the flat, sorted places `index` [n] of W."""

    kind = "sparse_low_rank"
    index: Tensor
    axes: ClassVar[Mapping[str, tuple[str, ...]]] = {"down": ("k", "K"), "up": ("N", "k")}
    defaults: ClassVar[Mapping[str, Any]] = MappingProxyType({"density": 0.03, "alpha": 32.0})

    def __init__(self, in_features: int, out_features: int, rank: int, **settings: Any):
        super().__init__(in_features, out_features, rank, **settings)
        size = in_features * out_features
        count = max(1, int(self.settings["density"] * size))
        self.down = nn.Parameter(torch.empty(rank, in_features))
        self.up = nn.Parameter(torch.empty(out_features, rank))
        self.values = nn.Parameter(torch.empty(count))
        self.register_buffer("index", torch.zeros(count, dtype=torch.int32 if size <= _INT32 else torch.int64))
        self.scale = self.settings["alpha"] / rank

    @classmethod
    def check(cls, settings: Mapping[str, Any]) -> None:
        density, alpha = settings["density"], settings["alpha"]
        if isinstance(density, bool) or not isinstance(density, int | float) or not 0 < density < 1:
            raise ConfigError(f"density={shown(density)} of base={cls.kind!r} must be a share of W between 0 and 1")
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < float("inf"):
            raise ConfigError(f"alpha={shown(alpha)} of base={cls.kind!r} must be a number above 0")

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x (s A B + S)ᵀ + b, one dense product"""
        parts = (self.up, self.down, self.values)
        if torch.is_grad_enabled() and (x.requires_grad or any(part.requires_grad for part in parts)):
            product: Tensor = _Product.apply(x, *parts, self.index, bias, self.scale)
            return product
        return F.linear(x, self.merged(), bias)

    def merged(self) -> Tensor:
        """s A B + S"""
        return _made(self.up, self.down, self.values, self.index, self.scale)

    def fill(self, weight: Tensor) -> None:
        """The truncated SVD of W in A and B, and in S what that leaves at its places.

        No best form is known in closed form; this one is off by what the SVD leaves at all other places.
        """
        up, down = spectral_factors(weight, self.rank)
        root = self.scale**-0.5
        rest = (wide(weight.detach()) - wide(up) @ wide(down)).reshape(-1)
        with torch.no_grad():
            self.up.copy_(up * root)
            self.down.copy_(down * root)
            self.values.copy_(rest.index_select(0, self.index.to(rest.device)))

    def draw(self) -> None:
        """The places of S, any of W's alike."""
        size = self.in_features * self.out_features
        if not self.index.is_meta:
            places = torch.randperm(size, dtype=self.index.dtype)[: self.index.numel()]
            self.index.copy_(places.sort().values)

    def flops(self) -> int:
        return 2 * self.in_features * self.out_features


def _made(up: Tensor, down: Tensor, values: Tensor, index: Tensor, scale: float) -> Tensor:
    """W [N, K] of its parts."""
    flat = (scale * (up @ down)).reshape(-1)
    return flat.index_add(0, index, values.to(flat.dtype)).reshape(up.shape[0], down.shape[1])


class _Product(torch.autograd.Function):
    """y = x Wᵀ + b that keeps the parts of W for its backward, and not W."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, up: Tensor, down: Tensor, values: Tensor, index: Tensor, bias: Tensor | None, scale: float
    ) -> Tensor:
        return F.linear(x, _made(up, down, values, index, scale), bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, up, down, values, index, bias, ctx.scale = inputs
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.save_for_backward(x, up, down, values, index)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, up, down, values, index = ctx.saved_tensors
        dx = dup = ddown = dvalues = dbias = None
        if ctx.needs_input_grad[0]:
            dx = (dy @ _made(up, down, values, index, ctx.scale).to(dy.dtype)).to(x.dtype)
        rows = dy.reshape(-1, dy.shape[-1])
        if any(ctx.needs_input_grad[1:4]):
            dw = rows.t() @ x.reshape(-1, x.shape[-1]).to(dy.dtype)
            dup = (ctx.scale * (dw @ down.t().to(dw.dtype))).to(up.dtype)
            ddown = (ctx.scale * (up.t().to(dw.dtype) @ dw)).to(down.dtype)
            dvalues = dw.reshape(-1).index_select(0, index).to(values.dtype)
        if ctx.needs_input_grad[5]:
            dbias = rows.sum(0).to(ctx.bias_dtype)
        return dx, dup, ddown, dvalues, None, dbias, None
