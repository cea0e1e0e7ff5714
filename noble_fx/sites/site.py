"""What the compiler knows of one linear map of a model, and what was chosen of all of them."""

from __future__ import annotations

import re
import weakref
from dataclasses import asdict, dataclass, field, replace
from typing import Any

BLOCK = "block"  # the role of a whole repeated block


@dataclass(frozen=True)
class Site:
    """One linear map of a model, or with scope="block" one block, x [.., in_features] -> y [.., out_features].

    `reason` says why it was chosen or why not; `rank` and `params` (parameters of its branch) are 0 where it was not.
    """

    fqn: str
    role: str  # attention.q, ffn.in, mixer.out, router, … or other: roles.py lists them; or block
    kind: str  # class of the layer, or what holds the weight
    in_features: int
    out_features: int
    rank: int
    selected: bool
    reason: str
    params: int
    aliases: tuple[str, ...] = ()  # further names of the same module; it still gets one branch
    unfused: str = ""  # why a chosen site runs the eager branch; empty where it is one operator
    weight: str = ""  # name of the parameter, where it is not the weight of a layer with a class of its own
    layout: str = ""  # what the axes of that parameter are: [N, K], [K, N], [E, N, K], …
    experts: int = 0  # how many matrices are stacked in it, each with a branch of its own; 0 for a single one
    action: str = ""  # what is done there: "add" a branch; empty where it was not chosen
    base: str = ""  # the kind of its base, where W has another form
    base_rank: int = 0
    base_params: int = 0  # parameters in the place of K N
    base_row_flops: int = 0  # of one row
    base_error: float | None = None  # relative, of the layer's outputs on what it was fitted to, or of W
    base_method: str = ""  # by which method of `compress`
    base_guide: float = 0.0  # until which share of training W goes on beside it

    @property
    def is_block(self) -> bool:
        """Whether it is a whole block, which has no weight of its own."""
        return self.role == BLOCK

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "aliases": list(self.aliases)}

    def matches(self, pattern: str) -> bool:
        """Whether a regex is found in one of its names."""
        return any(re.search(pattern, name) for name in (self.fqn, *self.aliases))

    def renamed(self, before: str, after: str) -> Site:
        """The same site in a model where the prefix `before` of its names is `after`."""

        def name(old: str) -> str:
            return after + old.removeprefix(before) if old else old

        aliases = tuple(name(alias) for alias in self.aliases)
        return replace(self, fqn=name(self.fqn), weight=name(self.weight), aliases=aliases)


@dataclass(frozen=True)
class Choice:
    """All sites of a model as `transform` chose them; every branch that it built holds the one choice."""

    sites: tuple[Site, ...]
    # The layers that the model had, in this process; a weak reference without a callback costs nobody anything.
    layers: tuple[weakref.ref[Any], ...] = field(default=(), compare=False, repr=False)

    def __deepcopy__(self, memo: dict[int, Any]) -> Choice:
        return self  # never changes, and a model has hundreds of branches

    def __getstate__(self) -> dict[str, Any]:
        return {"sites": self.sites}
