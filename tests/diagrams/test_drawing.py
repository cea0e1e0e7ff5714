"""Boxes in boxes: which blocks are drawn as one, and under which name."""

import pytest
from torch import nn

import noble_fx
from noble_fx.diagrams.drawing import Box, draw
from tests.models import tiny


def drawing(model: nn.Module, repeats: bool = False, **settings):
    return draw(noble_fx.explain(noble_fx.transform(model, rank=2, **settings)).to_networkx(), repeats)


def outline(boxes: tuple[Box, ...]) -> dict:
    """Names, each with what is in it."""
    return {box.lines[0]: outline(box.boxes) for box in boxes}


def stack(*widths: int) -> nn.Module:
    return nn.ModuleList(nn.ModuleDict({"a": nn.Linear(8, width), "b": nn.Linear(8, width)}) for width in widths)


def test_equal_blocks_are_one():
    whole = drawing(tiny(layers=5))
    block = {name: {} for name in ["q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"]}
    assert outline(whole.boxes) == {"blocks.* ×5": block, "head": {}}
    assert whole.pairs == (("blocks.0.q_proj", "blocks.0.v_proj"),)


def test_repeats_are_drawn_where_they_are_asked_for():
    whole = drawing(tiny(layers=3), repeats=True)
    assert list(outline(whole.boxes)["blocks"]) == ["0", "1", "2"]
    assert len(whole.pairs) == 3


@pytest.mark.parametrize(
    ("widths", "names"),
    [
        ([8, 8, 8], ["* ×3"]),
        ([8, 8, 8, 16, 8], ["0–2, 4 ×4", "3"]),
        ([8, 16, 8, 16], ["0, 2 ×2", "1, 3 ×2"]),
        ([8], ["0"]),
    ],
)
def test_the_name_says_which_numbers(widths, names):
    assert list(outline(drawing(stack(*widths)).boxes)) == names


def test_another_choice_is_another_block():
    whole = drawing(stack(8, 8, 8), exclude=["1.a"])
    assert list(outline(whole.boxes)) == ["0, 2 ×2", "1"]
    assert whole.boxes[1].boxes[0].lines[2] == "left out: named in exclude"


def test_blocks_inside_of_blocks():
    model = nn.ModuleDict({"layers": nn.ModuleList(nn.ModuleDict({"experts": stack(8, 8)}) for _ in range(3))})
    graph = noble_fx.explain(noble_fx.transform(model, rank=2)).to_networkx()
    graph.add_edge("layers.2.experts.1.a", "layers.2.experts.1.b", relation="shares input", group=0, runs=True)
    names = outline(draw(graph).boxes)
    assert list(names["layers"]) == ["0–1 ×2", "2.experts"]  # one reads an input twice, so it is another
    graph.remove_edge("layers.2.experts.1.a", "layers.2.experts.1.b")
    assert outline(draw(graph).boxes) == {"layers.* ×3": {"experts.* ×2": {"a": {}, "b": {}}}}
    for i in range(3):
        for j in range(2):
            names = f"layers.{i}.experts.{j}.a", f"layers.{i}.experts.{j}.b"
            graph.add_edge(*names, relation="shares input", group=0, runs=True)
    assert draw(graph).pairs == (("layers.0.experts.0.a", "layers.0.experts.0.b"),)


def test_a_name_of_digits_alone_is_a_number_and_others_are_not():
    model = nn.ModuleDict({name: nn.Linear(8, 8) for name in ("0", "01", "x1", "²")})
    assert list(outline(drawing(model, select="all").boxes)) == ["* ×2", "x1", "²"]


def test_what_is_written_of_a_site():
    (box,) = drawing(nn.Sequential(nn.Linear(8, 16)), select="all", act="gelu").boxes
    assert box.lines == ("0", "other · 8 → 16", "rank 2 · gelu · 48 parameters")
    assert box.site == "selected"


def test_a_model_that_is_one_layer_has_a_name_too():
    (box,) = drawing(nn.Linear(8, 8)).boxes
    assert box.lines[0] == "the whole model"


def test_a_site_that_holds_sites_is_a_box_too():
    graph = noble_fx.explain(noble_fx.transform(nn.Sequential(nn.Linear(8, 8)), rank=2)).to_networkx()
    graph.add_node("0.inner", **graph.nodes["0"])
    graph.add_edge("0", "0.inner", relation="contains")
    (box,) = draw(graph).boxes
    assert (box.site, [inner.lines[0] for inner in box.boxes]) == ("selected", ["inner"])
