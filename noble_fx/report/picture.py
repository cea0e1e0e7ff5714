"""One repeated block as nodes and edges for a layout library: what flows where, and which nodes carry a branch.

What only moves numbers about (views, transposes, slices) is passed through, and a module without a linear map in it is
one node. Where there is no graph of the model, the block's modules are drawn instead, each below what holds it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, fx

from noble_fx.explaining.account import LEFT_OUT, Account, SiteAccount
from noble_fx.ops.operands import Operands
from noble_fx.passes.listing import (
    Listing,
    block_name,
    block_of,
    lines_of,
    module_path,
    read_path,
    target_name,
    text_of,
)
from noble_fx.report.folding import Folding, in_block
from noble_fx.schema import LINEAR, LINEAR_GROUP

NODES = 200  # that are drawn
_MOVES = re.compile(
    "view|reshape|flatten|unflatten|transpose|t|permute|expand|squeeze|unsqueeze|contiguous|clone|detach|alias|to|_to_copy|"
    "type|float|getitem|slice|select|split|split_with_sizes|chunk|unbind|size|sym_size|sym_size_int"
)


@dataclass
class Node:
    """A box of the picture."""

    name: str
    label: str
    about: str = ""  # a second line
    kind: str = "operator"  # "fused", "eager", "plain" (a linear map without a branch), "module", "operator", "outside"
    facts: dict[str, str] = field(default_factory=dict)


class Picture(NamedTuple):
    """The picture of one block."""

    title: str
    nodes: list[Node]
    edges: list[tuple[str, str]]
    flows: bool  # what flows where, else what holds what
    left_out: int = 0  # nodes that are not drawn


def picture(account: Account) -> Picture | None:
    """The picture of the block with branches that is repeated most often; None for a model without blocks."""
    sites = {entry.site.fqn: entry for entry in account.entries}
    for program in account.programs:
        if drawn := _flow(program.graph_module.graph, sites):
            return drawn
    return _structure(account)


# --- of a graph ------------------------------------------------------------------------------------------------------


def _flow(graph: fx.Graph, sites: Mapping[str, SiteAccount]) -> Picture | None:
    folding = Folding([Listing("", lines_of(graph))])
    nodes: dict[str, list[fx.Node]] = {}
    block = ""
    for node in graph.nodes:
        if node.op.startswith("call_"):
            block = block_of(node, block)
            nodes.setdefault(block, []).append(node)
    counts = Counter(folding.like.values())
    found = [block for block in counts if any(_sites_of(node) for node in nodes.get(block, ()))]
    if not found:
        return None
    first = max(found, key=lambda block: counts[block])
    return _Flow(first, nodes[first], sites).picture(counts[first])


class _Flow:
    """Draws the nodes of one block."""

    def __init__(self, block: str, nodes: list[fx.Node], sites: Mapping[str, SiteAccount]):
        self.block, self.sites = block, sites
        self.inside = dict.fromkeys(nodes)
        self.drawn: dict[str, Node] = {}
        self.edges: dict[tuple[str, str], None] = {}
        self.place: dict[fx.Node, tuple[str, ...]] = {}  # what is drawn for a node: itself, its module, what it moves

    def picture(self, copies: int) -> Picture:
        left_out = 0
        for node in self.inside:
            if len(self.drawn) >= NODES:
                left_out += 1
                continue
            self._draw(node)
        for node in self.inside:
            if any(user not in self.inside for user in node.users) and node in self.place:
                self._leaves(node)
        times = f", one of {copies} that are equal" if copies > 1 else ""
        return Picture(f"{self.block}{times}", list(self.drawn.values()), list(self.edges), True, left_out)

    def _draw(self, node: fx.Node) -> None:
        sources = [place for source in node.all_input_nodes for place in self._places(source)]
        sources = list(dict.fromkeys(sources))
        if _MOVES.fullmatch(target_name(node).rpartition(".")[2]) or not (sources or _sites_of(node)):
            self.place[node] = tuple(sources)
            return
        made = self._node(node)
        name = made.name
        self.drawn.setdefault(name, made)
        self.place[node] = (name,)
        self.edges.update(dict.fromkeys((source, name) for source in sources if source != name))

    def _places(self, source: fx.Node) -> tuple[str, ...]:
        if source in self.place or read_path(source):
            return self.place.get(source, ())
        if source in self.inside or _is_size(source):  # was not drawn
            return ()
        name = f"outside {source.name}"
        self.drawn.setdefault(name, Node(name, source.name, "from outside", "outside", _value(source)))
        self.place[source] = (name,)
        return self.place[source]

    def _leaves(self, node: fx.Node) -> None:
        for place in self.place[node]:
            if self.drawn[place].kind != "outside":
                self.drawn.setdefault("out", Node("out", "out", "to what follows", "outside", _value(node)))
                self.edges[place, "out"] = None

    def _node(self, node: fx.Node) -> Node:
        facts = {**_value(node), "code": in_block(self.block, text_of(node))}
        if names := _sites_of(node):
            return self._with_sites(node, names, facts)
        path = module_path(node)
        if holder := self._without_sites(path):
            label = holder.removeprefix(f"{self.block}.")
            return Node(holder, label, _class_of(node, holder), "module", {"module": holder, **facts})
        if path in self.sites and (node.target == path or any(map(read_path, node.all_input_nodes))):
            label = path.removeprefix(f"{self.block}.").rpartition(".")[2]
            return Node(node.name, label, "linear", "plain", {"site": path, **facts})
        return Node(node.name, target_name(node).removeprefix("aten."), "", "operator", facts)

    def _with_sites(self, node: fx.Node, names: list[str], facts: dict[str, str]) -> Node:
        entries = [self.sites[name] for name in names if name in self.sites]
        label = ", ".join(name.removeprefix(f"{self.block}.").rpartition(".")[2] for name in names)
        about = "linear + branch" if len(names) == 1 else f"{len(names)} linears + branches, one call"
        if not (fused := node.op == "call_function"):
            about = "branch, eager"
        return Node(node.name, label, about, "fused" if fused else "eager", {**_of_sites(names, entries), **facts})

    def _without_sites(self, path: str) -> str:
        """The outermost module within the block that a path lies in and that has no linear map, or ""."""
        parts = path.split(".")
        for end in range(self.block.count(".") + 2, len(parts) + 1):
            holder = ".".join(parts[:end])
            if not any(name == holder or name.startswith(f"{holder}.") for name in self.sites):
                return holder
        return ""


def _sites_of(node: fx.Node) -> list[str]:
    """The names of the sites whose branches a node computes."""
    if node.target in (LINEAR, LINEAR_GROUP):
        downs = [site.down for site in Operands.of_node(node).sites]
        return [read_path(down).partition(".noble.")[0] for down in downs if isinstance(down, fx.Node)]
    if node.op == "call_module" and (str(node.target).endswith(".noble") or ".noble." in str(node.target)):
        return [str(node.target).partition(".noble")[0]]
    return []


def _of_sites(names: Iterable[str], entries: Iterable[SiteAccount]) -> dict[str, str]:
    sizes = [f"{e.site.in_features} → {e.site.out_features}, rank {e.site.rank}, {e.act}" for e in entries]
    return {"site": ", ".join(names), "size": "; ".join(dict.fromkeys(sizes))}


def _class_of(node: fx.Node, path: str) -> str:
    stack: Mapping[str, Any] = node.meta.get("nn_module_stack") or {}
    for where, kind in stack.values():
        if str(where).endswith(path):
            name = kind if isinstance(kind, str) else kind.__name__
            return str(name).rpartition(".")[2]
    return ""


def _is_size(node: fx.Node) -> bool:
    """True for what a graph knows to be no tensor: the size of a dimension, a flag."""
    return "val" in node.meta and not _value(node)


def _value(node: fx.Node) -> dict[str, str]:
    """Shape and dtype of what a node gives, where the graph knows them."""
    value = node.meta.get("val", node.meta.get("example_value"))
    values = value if isinstance(value, list | tuple) else [value]
    tensors = [each for each in values if isinstance(each, Tensor)]
    if not tensors:
        return {}
    shapes = [f"[{', '.join(map(str, each.shape))}]" for each in tensors]
    dtypes = [str(each.dtype).removeprefix("torch.") for each in tensors]
    return {"shape": ", ".join(dict.fromkeys(shapes)), "dtype": ", ".join(dict.fromkeys(dtypes))}


# --- without one -----------------------------------------------------------------------------------------------------


def _structure(account: Account) -> Picture | None:
    blocks: dict[str, list[SiteAccount]] = {}
    for entry in account.entries:
        if block := block_name(entry.site.fqn):
            blocks.setdefault(block, []).append(entry)
    contents = {block: tuple(_about(block, entry) for entry in entries) for block, entries in blocks.items()}
    counts = Counter(contents.values())
    carrying = [block for block, entries in blocks.items() if any(entry.state != LEFT_OUT for entry in entries)]
    if not carrying:
        return None
    first = max(carrying, key=lambda block: counts[contents[block]])
    times = f", one of {counts[contents[first]]} that are equal" if counts[contents[first]] > 1 else ""
    nodes, edges = _tree(first, blocks[first][:NODES])
    return Picture(f"{first}{times}", nodes, edges, False, max(len(blocks[first]) - NODES, 0))


def _about(block: str, entry: SiteAccount) -> tuple[Any, ...]:
    site = entry.site
    return site.fqn.removeprefix(block), site.in_features, site.out_features, site.rank, entry.state, entry.act


def _tree(block: str, entries: list[SiteAccount]) -> tuple[list[Node], list[tuple[str, str]]]:
    nodes: dict[str, Node] = {block: Node(block, block, "", "module")}
    edges: dict[tuple[str, str], None] = {}
    for entry in entries:
        name = entry.site.fqn
        nodes[name] = _leaf(entry)
        while name != block and (holder := name.rpartition(".")[0] or block):
            nodes.setdefault(holder, Node(holder, holder.rpartition(".")[2], "", "module"))
            edges[holder, name] = None
            name = holder
    return list(nodes.values()), list(edges)


def _leaf(entry: SiteAccount) -> Node:
    site = entry.site
    kind = "plain" if entry.state == LEFT_OUT else "eager" if site.unfused else "fused"
    about = f"{site.in_features} → {site.out_features}" + (f" · r {site.rank}" if site.rank else "")
    facts = {**_of_sites([site.fqn], [entry] if entry.state != LEFT_OUT else []), "role": site.role}
    return Node(site.fqn, site.fqn.rpartition(".")[2], about, kind, facts | {"reason": site.reason})
