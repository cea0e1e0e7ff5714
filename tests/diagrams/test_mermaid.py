"""Mermaid: the text, and that a name is nothing but text in it."""

import re

import pytest
from torch import nn

import noble_fx
from noble_fx.diagrams.drawing import Box, Drawing
from noble_fx.diagrams.mermaid import _quoted, to_mermaid
from tests.diagrams.names import NAMES, explanation
from tests.models import tiny


def shown(quoted: str) -> list[str]:
    """What Mermaid would write of a quoted text, line by line."""
    return [re.sub(r"#(\d+);", lambda found: chr(int(found[1])), line) for line in quoted.strip('"').split("<br>")]


def test_the_whole_text():
    site = Box("m.a", ("a_b", "ffn.in · 8 → 8"), "selected")
    out = Box("b", ("b",), "left out", (Box("b.c", ("c",), "selected"),))
    assert to_mermaid(Drawing("Net", (Box("m", ("m.* ×2",), "", (site,)), out), (("m.a", "b.c"),))).splitlines() == [
        "flowchart LR",
        '  subgraph g0["Net"]',
        '    subgraph g1["m#46;#42; ×2"]',
        '      n2["a_b<br>ffn.in · 8 → 8"]',
        "    end",
        '    subgraph g3["b"]',
        '      n3["b"]:::out',
        '      n4["c"]',
        "    end",
        "  end",
        "  n2 -.- n4",
        "  classDef out stroke-dasharray:4,color:#666",
    ]


@pytest.mark.parametrize("name", [*NAMES, "1. first", "    code", "+ item", "a  b", "__init__", "www.x", "1.5", ""])
def test_a_line_is_shown_as_it_is_and_holds_no_markup(name):
    if not name.isprintable():
        return  # such names come as escapes: the graph's own are below
    quoted = _quoted(name, name)
    assert shown(quoted) == [name, name]
    inner = re.sub(r"#\d+;", "", quoted[1:-1].replace("<br>", ""))
    assert re.fullmatch(r"[\w ,.·→×–]*", inner)
    assert not re.search(r"(^|<br>)( |\d+[.)] )|  |(^|\W)_|_(\W|$)", quoted[1:-1])


def test_names_of_a_model():
    text = explanation().to_mermaid()
    lines = [shown(body)[0] for body in re.findall(r'\["(.*?)"\]', text)]
    assert {name.replace("\\", "\\\\") for name in NAMES if name.isprintable()} <= set(lines)
    assert {"two\\nlines", "two\\\\nlines", "\\x1b[31m\\x00\\ufffe"} <= set(lines)
    outside = re.sub(r'"[^"]*"', "", text).removesuffix("  classDef out stroke-dasharray:4,color:#666\n")
    assert re.fullmatch(r"(flowchart LR|subgraph g\d+\[\]|n\d+\[\]|end|\s)*", outside), outside


def test_a_deep_model_stays_short():
    text = noble_fx.explain(noble_fx.transform(tiny(layers=32), rank=4, capture="modules")).to_mermaid()
    assert len(text.splitlines()) == 14
    assert 'subgraph g1["blocks#46;#42; ×32"]' in text
    assert "  n2 -.- n4\n" in text


def test_repeats_and_a_model_of_nothing():
    explained = noble_fx.explain(noble_fx.transform(tiny(), rank=4))
    assert explained.to_mermaid(repeats=True).count("fc1") == 2
    assert 'subgraph g0["ReLU"]\n  end' in noble_fx.explain(nn.ReLU()).to_mermaid()
