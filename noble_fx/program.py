"""The data that flows through the compiler: sites found in a model, graphs over them, and what each pass did."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from torch import fx

from noble_fx.schema import LINEAR_GROUP


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


@dataclass(frozen=True)
class Skip:
    """A pass's answer where it does not apply, with the reason as data."""

    reason: str


@dataclass(frozen=True)
class Step:
    """One line of a program's history: what a pass did to one node, or why it did nothing."""

    rule: str
    node: str
    before: str
    after: str  # empty when skipped
    skipped: str = ""  # the reason, empty when rewritten


@dataclass(frozen=True)
class Program:
    """One graph of a model, the sites it touches, and the history of the passes that made it."""

    graph_module: fx.GraphModule
    sites: tuple[Site, ...]
    history: tuple[Step, ...]
    mode: str = ""  # "train" or "eval" where each has a graph, "compiled" for one of Dynamo's, else empty

    def __str__(self) -> str:
        return str(self.graph_module.graph)

    @property
    def groups(self) -> tuple[int, ...]:
        """How many sites each grouped call takes; a compiled graph may have some in the bodies of checkpoints."""
        graphs = [m.graph for m in self.graph_module.modules() if isinstance(m, fx.GraphModule)]
        calls: list[Any] = [node for graph in graphs for node in graph.nodes if node.target is LINEAR_GROUP]
        return tuple(len(call.args[1]) for call in calls)
