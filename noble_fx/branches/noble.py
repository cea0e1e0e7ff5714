"""The eager truth: the branch, and the linear layers that carry one.

For a linear map `x [.., K] -> y [.., N]` and a rank r (arXiv 2603.06492, eq. of the layer):

    y = x Wᵀ + b + σ(x Dᵀ + d) Uᵀ          W [N, K]   b [N]   D [r, K]   d [r]   U [N, r]

Everything fast in this project is measured against `NobleBranch.forward`.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from noble_fx.branches import activations, keys
from noble_fx.config import NobleConfig

_LIVE: weakref.WeakSet[NobleBranch] = weakref.WeakSet()


class NobleBranch(nn.Module):
    """σ(x Dᵀ + d) Uᵀ, [.., K] -> [.., N]; parameters `down` [r, K], `down_bias` [r] or None, `up` [N, r], `act.…`.

    Drawn as the preset of `config` says: D ~ N(0, 1/√K), d = 0, U ~ N(0, α/√r).
    """

    up_bias: nn.Parameter | None

    def __init__(self, in_features: int, out_features: int, rank: int, config: NobleConfig, role: str = "other"):
        super().__init__()
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.config, self.role = config, role
        self.enabled = True  # False inside noble_fx.disabled()
        self.unfused = "not asked for"  # why the operator is not used; "" where it is
        self.reason = self.declined = ""  # why this layer was chosen; why the model has no graph
        preset = config.recipe
        down_bias = preset.down_bias and not activations.is_identity(config.act)
        self.down = nn.Parameter(torch.empty(rank, in_features))
        self.down_bias = nn.Parameter(torch.empty(rank)) if down_bias else None
        self.up = nn.Parameter(torch.empty(out_features, rank))
        self.register_parameter("up_bias", None)  # only a folded branch has one
        self.act = activations.build_activation(config.act, rank, preset)
        self.reset_parameters()
        _LIVE.add(self)
        self.key = keys.activation_key(self.act, self.label)

    @classmethod
    def on_meta(cls, in_features: int, out_features: int, rank: int, config: NobleConfig) -> NobleBranch:
        """A branch without values: its names and shapes only."""
        with torch.device("meta"):
            return cls(in_features, out_features, rank, config)

    @property
    def label(self) -> str:
        """The activation's name."""
        return activations.activation_label(self.config.act)

    def reset_parameters(self) -> None:
        """Draw D, d and U again; the parts of σ have a `reset_parameters` of their own."""
        nn.init.normal_(self.down, std=self.in_features**-0.5)
        if self.down_bias is not None:
            nn.init.zeros_(self.down_bias)
        nn.init.normal_(self.up, std=self.config.recipe.up_gain * self.rank**-0.5)

    def forward(self, x: Tensor, rows: slice | None = None) -> Tensor:
        """[.., N], or only the `rows` of N that go with a slice of the weight (one part of a fused qkv)."""
        h = F.linear(x, self.down, self.down_bias)
        up_bias = self.up_bias if rows is None or self.up_bias is None else self.up_bias[rows]
        return F.linear(activations.evaluate(self.act, h), self.up if rows is None else self.up[rows], up_bias)

    def with_bias(self, bias: Tensor | None) -> Tensor | None:
        """The layer's bias [N] and the branch's own as one."""
        if self.up_bias is None:
            return bias
        return self.up_bias if bias is None else bias + self.up_bias

    def act_tensors(self) -> list[Tensor]:
        """σ's parameters, then its buffers: the `act` argument of `noble_fx::linear`."""
        return [*self.act.parameters(), *self.act.buffers()]

    def extra_repr(self) -> str:
        return f"{self.in_features} -> {self.rank} ({self.label}) -> {self.out_features}"

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        _LIVE.add(self)
        self.key = keys.activation_key(self.act, self.label)  # a new process does not know the key yet


def branches_with(downs: Iterable[Tensor]) -> list[NobleBranch]:
    """The branches, of whatever model, that hold one of these `down` matrices: a compiled graph shows no more."""
    wanted = set(map(id, downs))
    return [branch for branch in _LIVE if id(branch.down) in wanted]
