"""A drawing as DOT, the language of Graphviz: `dot -Tsvg`."""

from __future__ import annotations

from itertools import count

from noble_fx.diagrams.drawing import Box, Drawing, Language, written
from noble_fx.diagrams.site_graph import SELECTED

_STYLES = {True: 'style=filled, fillcolor="#d7e8ff"', False: "style=dashed, color=gray40, fontcolor=gray40"}


def to_dot(drawing: Drawing) -> str:
    """The text of a `digraph`; modules are clusters, sites nodes, dashed where they were left out."""
    names: dict[str, str] = {}
    lines = [f"digraph {{ graph [rankdir=LR, fontname=monospace, label={_quoted(drawing.title)}];"]
    lines.append("  node [shape=box, fontname=monospace]; edge [dir=none, style=dotted];")
    language, numbers = Language(_node, _cluster, "}"), count()
    for box in drawing.boxes:
        lines += [f"  {line}" for line in written(box, language, names, numbers)]
    lines += [f"  {names[source]} -> {names[target]};" for source, target in drawing.pairs]
    return "\n".join([*lines, "}", ""])


def _node(number: int, box: Box) -> str:
    return f"n{number} [label={_quoted(*box.lines)}, {_STYLES[box.site == SELECTED]}];"


def _cluster(number: int, box: Box) -> str:
    return f"subgraph cluster_{number} {{ label={_quoted(box.lines[0])};"


def _quoted(*lines: str) -> str:
    """Lines as a string of DOT, which says of itself nothing: no escapes, no entities of HTML, no markup."""
    escaped = [line.replace("\\", "\\\\").replace('"', '\\"').replace("&", "&amp;") for line in lines]
    return '"' + "\\n".join(escaped) + '"'
