"""A drawing as a Mermaid flowchart, which Markdown pages show as a picture."""

from __future__ import annotations

import re
from itertools import count

from noble_fx.diagrams.drawing import Box, Drawing, Language, written
from noble_fx.diagrams.site_graph import LEFT_OUT

# What may mean something to Mermaid, to Markdown, which it reads labels as, or to HTML: all but letters, digits, a few
# signs, single spaces, and points and underscores inside of a word.
_MARKUP = re.compile(r"(?<![^\W_])[._]|[._](?![^\W_])|(?<![^ ]) |[^\w ,.·→×–]")


def to_mermaid(drawing: Drawing) -> str:
    """The text of a `flowchart`; modules are subgraphs, sites nodes, dashed where they were left out."""
    names: dict[str, str] = {}
    language = Language(_node, _subgraph, "end")
    whole = Box("", (drawing.title,), "", drawing.boxes)
    lines = ["flowchart LR", *(f"  {line}" for line in written(whole, language, names, count()))]
    lines += [f"  {names[source]} -.- {names[target]}" for source, target in drawing.pairs]
    return "\n".join([*lines, "  classDef out stroke-dasharray:4,color:#666", ""])


def _node(number: int, box: Box) -> str:
    return f"n{number}[{_quoted(*box.lines)}]{':::out' * (box.site == LEFT_OUT)}"


def _subgraph(number: int, box: Box) -> str:
    return f"subgraph g{number}[{_quoted(box.lines[0])}]"


def _quoted(*lines: str) -> str:
    """Lines as a quoted text; whatever might be markup is written as the number of its character."""
    escaped = [_MARKUP.sub(lambda found: f"#{ord(found[0])};", line) for line in lines]
    return '"' + "<br>".join(escaped) + '"'
