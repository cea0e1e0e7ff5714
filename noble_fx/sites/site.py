"""The data that flows through the compiler: sites found in a model, graphs over them, and what each pass did."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Site:
    """One linear map of a model, chosen or not, x [.., in_features] -> y [.., out_features].

    `reason` says why it was chosen or why not; `rank` and `params` (parameters of its branch) are 0 where it was not.
    """

    fqn: str
    role: str  # attention.q | .k | .v | .qkv | .out, ffn.in | .gate | .out, other
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

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "aliases": list(self.aliases)}
