"""What every other form of W is: the one interface that layers, verbs, the optimizer's groups and files know.

    y = x Wᵀ + b   ->   y = base(x, b)          x [.., K]   W [N, K]   b [N]

A kind is a subclass of `Base` in a file of its own. It says `forward`, `merged` and `fill`; what it is made of are its
parameters (what learns) and buffers (what does not).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from noble_fx.errors import ConfigError, Refusal


class Base(nn.Module):
    """A linear map [.., K] -> [.., N] of rank `rank` in the place of a layer's W; the base of every kind."""

    kind: str = ""  # the name that `transform(base=…)` takes
    action: ClassVar[str] = "replace"
    # The dimensions of its own tensors, as a branch has them (`Branch.axes`).
    axes: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    # What its class takes besides K, N and the rank, in plain JSON values, each as it is where nobody says else.
    defaults: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    whole: ClassVar[bool] = False  # of full width at first, min(K, N): it saves once it was truncated
    # How far it is off where it was fitted: ‖y − ŷ‖ over what y varies on the rows for it, ‖W − Ŵ‖ over ‖W‖ without.
    error: float | None = None
    method: str = ""  # by which method of `compress` it was made
    guide: float = 0.0  # until which share of training W goes on beside it
    lacks_values = False  # made on the meta device, and not drawn since

    def __init__(self, in_features: int, out_features: int, rank: int, **settings: Any):
        super().__init__()
        self.settings = self.completed(settings)
        if wrong := self.misfit(in_features, out_features, rank, self.settings):
            raise ConfigError(f"no base of kind {self.kind!r} is [{out_features}, {in_features}]: {wrong}")
        self.in_features, self.out_features, self.rank = in_features, out_features, rank

    # --- what a kind says ---------------------------------------------------------------------------------------------

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """y [.., N] = x Wᵀ + b, in the form of this kind."""
        raise NotImplementedError

    def merged(self) -> Tensor:
        """W [N, K], differentiable."""
        raise NotImplementedError

    def fill(self, weight: Tensor) -> None:
        """Become the best form of W [N, K] that this kind and rank have, in place."""
        raise NotImplementedError

    # --- what it may say better ---------------------------------------------------------------------------------------

    @classmethod
    def check(cls, settings: Mapping[str, Any]) -> None:
        """Refuse settings that no layer could have, before a model is looked at; raises `ConfigError`."""

    @classmethod
    def unit(cls, settings: Mapping[str, Any]) -> int:
        """Of what number its rank must be a multiple."""
        return 1

    @classmethod
    def misfit(cls, in_features: int, out_features: int, rank: int, settings: Mapping[str, Any]) -> str:
        """Why W [N, K] cannot have this form at this rank, "" where it can."""
        limit = min(in_features, out_features)
        return f"its rank {rank} is above min(K, N) = {limit}" if rank > limit else ""

    def draw(self) -> None:
        """Give its buffers the values that it starts with, at random where there is something to draw."""

    def between_steps(self, progress: float, prefix: int | None = None) -> None:
        """What is due between two training steps, of which the share `progress` is done; in place."""

    def stepped(self) -> list[Tensor]:
        """The tensors that `between_steps` changes."""
        return []

    @property
    def widths(self) -> int:
        """At how many widths it may run in training: `between_steps` is told one; 0 where it has but one."""
        return 0

    def lasso(self) -> Tensor | None:
        """What `hierarchical_lasso` adds up, differentiable; None for a kind whose parts have no order."""
        return None

    def importances(self) -> Tensor | Refusal:
        """How much each of its `rank` parts counts, the first one most [rank]; or why it has no such parts."""
        return Refusal(f"bases of kind {self.kind!r} have no parts that could be cut off")

    def truncated(self, rank: int) -> Base | Refusal:
        """A new one of its kind, of the `rank` parts that count most; or why there is none."""
        return Refusal(f"bases of kind {self.kind!r} have no parts that could be cut off")

    @property
    def label(self) -> str:
        """What it is, in a word or two."""
        return f"{self.kind} r {self.rank}"

    def flops(self) -> int:
        """Of one row: two for each multiply-add of its products."""
        return 2 * sum(parameter.numel() for parameter in self.parameters() if parameter.ndim >= 2)

    # --- what is derived ----------------------------------------------------------------------------------------------

    @classmethod
    def completed(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """All settings of one, from those that were given; raises `ConfigError` for what it does not take."""
        for name in settings:
            if name not in cls.defaults:
                known = f"; it takes {', '.join(cls.defaults)}" if cls.defaults else ""
                raise ConfigError(f"bases of kind {cls.kind!r} have no setting {name!r}{known}")
        complete = {**cls.defaults, **settings}
        cls.check(complete)
        return complete

    @classmethod
    def on_meta(cls, in_features: int, out_features: int, rank: int, **settings: Any) -> Base:
        """One without values: its names and shapes only."""
        with torch.device("meta"):
            return cls(in_features, out_features, rank, **settings)

    @classmethod
    def parameter_count(cls, in_features: int, out_features: int, rank: int, **settings: Any) -> int:
        """How many parameters one has."""
        return sum(p.numel() for p in cls.on_meta(in_features, out_features, rank, **settings).parameters())

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that it is stored in."""
        return next(self.parameters()).dtype

    def described(self) -> dict[str, Any]:
        """What a file says of it, in plain JSON values; `kinds.base_of` is the inverse."""
        return {"kind": self.kind, "rank": self.rank, "error": self.error, "method": self.method, **self.settings}

    def extra_repr(self) -> str:
        return f"{self.in_features} -> {self.label} -> {self.out_features}"
