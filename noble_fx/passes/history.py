"""What passes did to a graph: the program, and each step of its history."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import fx

from noble_fx.passes.listing import Listing
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


class History(tuple[Step, ...]):
    """The steps of every pass over one graph, in order; `before` counts the operators that it had before them.

    `listings` are its lines then and after every pass that rewrote something, where they were kept.
    """

    before: dict[str, int] | None
    listings: tuple[Listing, ...]

    def __new__(
        cls, steps: Iterable[Step] = (), before: dict[str, int] | None = None, listings: Iterable[Listing] = ()
    ) -> History:
        history = super().__new__(cls, steps)
        history.before, history.listings = before, tuple(listings)
        return history

    def __add__(self, later: Any) -> History:
        before = self.before if self.before is not None else getattr(later, "before", None)
        theirs = getattr(later, "listings", ())
        # Where the later passes began is where the earlier ones ended.
        return History((*self, *later), before, (*self.listings, *theirs[1 if self.listings else 0 :]))


def operators(graph_module: fx.GraphModule) -> dict[str, int]:
    """How often a graph, bodies included, calls each operator, module class and method; the most frequent first."""
    graphs = [module for module in graph_module.modules() if isinstance(module, fx.GraphModule)]
    names = [_operator(node, graph) for graph in graphs for node in graph.graph.nodes if node.op.startswith("call_")]
    return dict(Counter(names).most_common())


def _operator(node: fx.Node, graph_module: fx.GraphModule) -> str:
    target: Any = node.target
    if node.op == "call_module":
        return type(graph_module.get_submodule(target)).__name__
    if node.op == "call_method":
        return f".{target}"
    if callable(getattr(target, "name", None)):  # an operator of torch's: "aten::mm"
        return str(target.name())
    return str(getattr(target, "__name__", target))


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
    def operators(self) -> dict[str, int]:
        """How often the graph calls each operator, module class and method."""
        return operators(self.graph_module)

    @property
    def operators_before(self) -> dict[str, int] | None:
        """The same of the graph as it was captured; None where nothing was noted."""
        return getattr(self.history, "before", None)

    @property
    def groups(self) -> tuple[int, ...]:
        """How many sites each grouped call takes; a compiled graph may have some in the bodies of checkpoints."""
        graphs = [m.graph for m in self.graph_module.modules() if isinstance(m, fx.GraphModule)]
        calls: list[Any] = [node for graph in graphs for node in graph.nodes if node.target is LINEAR_GROUP]
        return tuple(len(call.args[1]) for call in calls)
