"""An account as a small piece of HTML for a notebook: the layers by block, and the block as a still picture."""

from __future__ import annotations

from typing import NamedTuple

from noble_fx.errors import ConfigError
from noble_fx.explaining.account import Account
from noble_fx.explaining.terminal import rows
from noble_fx.report import overview
from noble_fx.report.picture import Picture, picture
from noble_fx.report.templates import templates

ROWS = 40
NODES = 48  # of a picture; a larger one is for the page
BOX_WIDTH, BOX_HEIGHT = 132, 26
_WIDTH, _HEIGHT, _ACROSS = 148, 50, 190  # from box to box; _ACROSS from left to right
_LETTERS = 19  # of a label
_ASIDE = 12  # between a box and a line that passes it


class Box(NamedTuple):
    """A box of the picture, by its middle."""

    label: str
    kind: str
    x: float
    y: float


class Still(NamedTuple):
    """A picture with places for everything in it."""

    title: str
    boxes: list[Box]
    lines: list[str]  # paths of an SVG
    width: float
    height: float


def fragment(account: Account) -> str | None:
    """The piece of HTML; None where the packages that make it are missing, and a notebook shows the text instead."""
    try:
        template = templates().get_template("notebook.html.jinja")
    except ConfigError:
        return None
    listed = rows(account.entries)
    drawn = picture(account)
    return template.render(
        account=account,
        overview=overview,
        rows=listed[:ROWS],
        left_out=len(listed) - ROWS,
        still=None if drawn is None else still(drawn),
        box=(BOX_WIDTH, BOX_HEIGHT),
    )


def still(drawn: Picture) -> Still | None:
    """The picture laid out; None for one that is too large, and without NumPy, which networkx lays out with."""
    import networkx as nx

    graph: nx.DiGraph = nx.DiGraph(drawn.edges)
    graph.add_nodes_from(node.name for node in drawn.nodes)
    if len(graph) > NODES or not nx.is_directed_acyclic_graph(graph):
        return None
    layers = {at: sorted(names, key=list(graph).index) for at, names in enumerate(nx.topological_generations(graph))}
    try:
        placed = nx.multipartite_layout(graph, layers, align="horizontal" if drawn.flows else "vertical")
    except ImportError:
        return None
    across, down = (0, 1) if drawn.flows else (1, 0)
    firsts = [placed[names[0]][down] for names in layers.values()]
    step = abs(firsts[1] - firsts[0]) if len(firsts) > 1 else 1.0  # of the layout, from one layer to the next
    spread = [placed[name][across] / step for name in graph]
    level = {name: at for at, names in layers.items() for name in names}
    wide, high = (_WIDTH, _HEIGHT) if drawn.flows else (_HEIGHT, _ACROSS)
    places = {name: ((at - min(spread)) * wide, level[name] * high) for name, at in zip(graph, spread, strict=True)}
    if not drawn.flows:
        places = {name: (y, x) for name, (x, y) in places.items()}
    boxes = [Box(_short(node.label), node.kind, *places[node.name]) for node in drawn.nodes]

    def aside(a: str, b: str) -> float:
        """How far right a line has to be to pass the boxes between two."""
        return max(places[name][0] for name in graph if level[a] <= level[name] <= level[b]) + BOX_WIDTH / 2 + _ASIDE

    lines = [
        _line(places[a], places[b], aside(a, b) if drawn.flows and level[b] - level[a] > 1 else None, drawn.flows)
        for a, b in drawn.edges
    ]
    return Still(drawn.title, boxes, lines, max(box.x for box in boxes), max(box.y for box in boxes))


def _line(start: tuple[float, float], end: tuple[float, float], aside: float | None, flows: bool) -> str:
    """From the edge of one box to that of another, or past the boxes in between, which end at `aside`."""
    (x, y), (to_x, to_y) = start, end
    if not flows:
        x, to_x, middle = x + BOX_WIDTH / 2, to_x - BOX_WIDTH / 2, (x + to_x) / 2
        points = (x, y), (middle, y), (middle, to_y), (to_x, to_y)
    elif aside is None:
        y, to_y, middle = y + BOX_HEIGHT / 2, to_y - BOX_HEIGHT / 2, (y + to_y) / 2
        points = (x, y), (x, middle), (to_x, middle), (to_x, to_y)
    else:
        x, to_x = x + BOX_WIDTH / 2, to_x + BOX_WIDTH / 2
        far = aside + (aside - min(x, to_x)) / 3  # a curve comes three quarters of the way to what it is drawn by
        points = (x, y), (far, y), (far, to_y), (to_x, to_y)
    (first, *others) = [f"{across:.0f} {down:.0f}" for across, down in points]
    return f"M{first}C{' '.join(others)}"


def _short(label: str) -> str:
    return label if len(label) <= _LETTERS else f"{label[: _LETTERS - 1]}…"
