"""DOT: the text, and that a name is nothing but text in it."""

import re

import networkx as nx
from torch import nn

import noble_fx
from noble_fx.diagrams.dot import to_dot
from noble_fx.diagrams.drawing import Box, Drawing
from tests.diagrams.names import NAMES, explanation
from tests.models import transformed

_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')  # as Graphviz reads one


def labels(text: str) -> list[list[str]]:
    """What Graphviz would write, line by line, of each label."""
    shown = [re.split(r"\\n", re.sub(r"\\\\", "\0", body)) for body in re.findall(r"label=" + _STRING.pattern, text)]
    return [[line.replace("\0", "\\").replace('\\"', '"').replace("&amp;", "&") for line in lines] for lines in shown]


def test_the_whole_text():
    site = Box("m.a", ("a", "ffn.in · 8 → 8"), "selected")
    out = Box("b", ("b",), "left out", (Box("b.c", ("c",), "selected"),))
    assert to_dot(Drawing("Net", (Box("m", ("m ×2",), "", (site,)), out), (("m.a", "b.c"),))).splitlines() == [
        'digraph { graph [rankdir=LR, fontname=monospace, label="Net"];',
        "  node [shape=box, fontname=monospace]; edge [dir=none, style=dotted];",
        '  subgraph cluster_0 { label="m ×2";',
        '    n1 [label="a\\nffn.in · 8 → 8", style=filled, fillcolor="#d7e8ff"];',
        "  }",
        '  subgraph cluster_2 { label="b";',
        '    n2 [label="b", style=dashed, color=gray40, fontcolor=gray40];',
        '    n3 [label="c", style=filled, fillcolor="#d7e8ff"];',
        "  }",
        "  n1 -> n3;",
        "}",
    ]


def test_a_name_is_text():
    text = explanation().to_dot()
    shown = {lines[0] for lines in labels(text)}
    assert {name.replace("\\", "\\\\") for name in NAMES if name.isprintable()} <= shown
    assert {"two\\nlines", "two\\\\nlines", "\\x1b[31m\\x00\\ufffe"} <= shown
    outside = _STRING.sub("", text)
    assert re.fullmatch(r"[\w\s{}\[\]=;,]*", outside), outside  # no quote, bracket or sign but those of the grammar
    assert outside.count("{") == outside.count("}") == 1 + len(NAMES)


def test_equal_blocks_are_written_once():
    explained = noble_fx.explain(transformed("fx"))
    assert explained.to_dot().count("fc1") == 1
    assert explained.to_dot(repeats=True).count("fc1") == 2


def test_a_model_of_nothing():
    assert labels(noble_fx.explain(nn.ReLU()).to_dot()) == [["ReLU"]]
    assert nx.is_empty(noble_fx.explain(nn.ReLU()).to_networkx())
