"""What passes did to a graph: the program, and each step of its history."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx

from noble_fx.schema import LINEAR_GROUP
from noble_fx.sites.site import Site


@dataclass(frozen=True)
class Skip:
    """A pass's answer where it does not apply, with the reason as data."""

    reason: str


@dataclass(frozen=True)
class Changed:
    """A pass's answer where it changed the graph around this node, which stays in its place."""

    node: fx.Node


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
    shared: tuple[tuple[str, ...], ...] = ()  # the sites of each grouped call, by their names in the whole model

    def __str__(self) -> str:
        return str(self.graph_module.graph)

    @property
    def groups(self) -> tuple[int, ...]:
        """How many sites each grouped call takes; a compiled graph may have some in the bodies of checkpoints."""
        graphs = [m.graph for m in self.graph_module.modules() if isinstance(m, fx.GraphModule)]
        calls: list[Any] = [node for graph in graphs for node in graph.nodes if node.target is LINEAR_GROUP]
        return tuple(len(call.args[1]) for call in calls)
