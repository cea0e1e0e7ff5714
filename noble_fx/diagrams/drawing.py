"""A site graph as boxes in boxes, equal ones of repeated blocks drawn once: what DOT and Mermaid are written from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from textwrap import wrap
from typing import TYPE_CHECKING, Any, NamedTuple

from noble_fx.diagrams.site_graph import CONTAINS, SELECTED, SHARES
from noble_fx.sites.patterns import ranges

if TYPE_CHECKING:
    import networkx as nx

_COLUMNS = 48  # of a reason, before it goes on in the next line


@dataclass(frozen=True)
class Box:
    """A module or a site, under the name that it has in the box around it."""

    name: str  # of its node in the graph
    lines: tuple[str, ...]  # what is written in it; the first is its name
    site: str  # the state of a site, empty for a module
    boxes: tuple[Box, ...] = ()


@dataclass(frozen=True)
class Drawing:
    """All boxes of a model, and the pairs of sites that read one input."""

    title: str
    boxes: tuple[Box, ...]
    pairs: tuple[tuple[str, str], ...]


class Language(NamedTuple):
    """How a language says a box by its number: as a node, and as what opens and closes around others."""

    node: Callable[[int, Box], str]
    opened: Callable[[int, Box], str]
    closed: str


def written(box: Box, language: Language, names: dict[str, str], numbers: Iterator[int]) -> Iterator[str]:
    """A box with its boxes, line by line; a site that holds others is a node among them. `names` are told nodes."""
    number = next(numbers)
    if box.site:
        names[box.name] = f"n{number}"
        if not box.boxes:
            yield language.node(number, box)
            return
    yield language.opened(number, box)
    if box.site:
        yield f"  {language.node(number, box)}"
    for inner in box.boxes:
        yield from (f"  {line}" for line in written(inner, language, names, numbers))
    yield language.closed


def draw(graph: nx.DiGraph, repeats: bool = False) -> Drawing:
    """The drawing of a site graph; equal numbered modules of one holder are one box, unless `repeats` are drawn too."""
    same: dict[str, str] = {}
    roots = [name for name in graph if not list(_related(graph, name, CONTAINS, incoming=True))]
    boxes = tuple(_boxes(graph, "", roots, same, repeats))
    shared = [(a, b) for a, b, relation in graph.edges(data="relation") if relation == SHARES]
    pairs = dict.fromkeys((_drawn(a, same), _drawn(b, same)) for a, b in shared)
    return Drawing(graph.graph["model"], boxes, tuple(pair for pair in pairs if pair[0] != pair[1]))


def _drawn(name: str, same: dict[str, str]) -> str:
    """The node that is drawn for this one; blocks inside of blocks lead there in steps."""
    while same[name] != name:
        name = same[name]
    return name


def _boxes(graph: nx.DiGraph, holder: str, names: list[str], same: dict[str, str], repeats: bool) -> Iterator[Box]:
    """The boxes of what `holder` holds; `same` takes note of the node that is drawn for each."""
    for label, equal in _equal(graph, holder, names, repeats):
        first = equal[0]
        for name in equal:
            same |= dict(zip(_inside(graph, name), _inside(graph, first), strict=True))
        times = f" ×{len(equal)}" if len(equal) > 1 else ""
        held = _held(graph, first)
        boxes = tuple(_boxes(graph, first, held, same, repeats))
        facts = graph.nodes[first]
        if len(boxes) == 1 and facts["node"] == "module" and not boxes[0].site and not times:
            (box,) = boxes  # a box around a single box says no more than its name
            yield Box(box.name, (f"{label}.{box.lines[0]}", *box.lines[1:]), "", box.boxes)
        else:
            yield Box(first, (label + times, *_about(facts)), facts.get("state", ""), boxes)


def _equal(graph: nx.DiGraph, holder: str, names: list[str], repeats: bool) -> list[tuple[str, list[str]]]:
    """What is drawn as one, with the name that it is drawn under: `*` for all numbers of a holder, else which."""
    alike: dict[Any, list[str]] = {}
    for name in names:
        numbered = _part(holder, name).isdecimal() and not repeats
        alike.setdefault(_content(graph, name) if numbered else name, []).append(name)
    numbers = sum(_part(holder, name).isdecimal() for name in names)
    return [(_label(holder, equal, len(equal) == numbers), equal) for equal in alike.values()]


def _label(holder: str, names: list[str], every_number: bool) -> str:
    parts = [_part(holder, name) for name in names]
    if len(parts) == 1:
        return parts[0] or "the whole model"
    return "*" if every_number else ", ".join(ranges(parts))


def _content(graph: nx.DiGraph, name: str) -> Any:
    """All that is drawn of a node and of what it holds, but for the name: equal for blocks that are alike."""
    inside = _inside(graph, name)
    places = {inner: place for place, inner in enumerate(inside)}
    said = []
    for inner in inside:
        own = {key: value for key, value in graph.nodes[inner].items() if key not in ("name", "aliases")}
        shares = tuple(places.get(other, other) for other in _related(graph, inner, SHARES))
        said.append((inner.removeprefix(name), tuple(own.items()), shares))
    return tuple(said)


def _inside(graph: nx.DiGraph, name: str) -> list[str]:
    """A node and all that it holds, in order."""
    return [name, *(inner for held in _held(graph, name) for inner in _inside(graph, held))]


def _held(graph: nx.DiGraph, name: str) -> list[str]:
    return list(_related(graph, name, CONTAINS))


def _related(graph: nx.DiGraph, name: str, relation: str, incoming: bool = False) -> Iterator[str]:
    edges = graph.pred[name] if incoming else graph.succ[name]
    return (other for other, facts in edges.items() if facts["relation"] == relation)


def _part(holder: str, name: str) -> str:
    """The name within its holder."""
    return name.removeprefix(f"{holder}.") if holder else name


def _about(facts: dict[str, Any]) -> Iterator[str]:
    """What is written in a site's box below its name."""
    if facts["node"] != "site":
        return
    yield f"{facts['role']} · {facts['in_features']} → {facts['out_features']}"
    if facts["state"] == SELECTED:
        sigma = [facts["sigma"]] if "sigma" in facts else []
        yield " · ".join([f"rank {facts['rank']}", *sigma, f"{facts['params']:,} parameters"])
        if why := facts.get("unfused") or facts.get("no_kernel"):
            yield from wrap(f"PyTorch operators: {why}", _COLUMNS)
    else:
        yield from wrap(f"left out: {facts['reason']}", _COLUMNS)
