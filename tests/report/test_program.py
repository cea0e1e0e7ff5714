from torch import fx, nn

import noble_fx
from noble_fx.explaining.graphs import graph_account
from noble_fx.passes import listing
from noble_fx.passes.history import History, Program, Step
from noble_fx.report import program as pages
from noble_fx.report.program import program_page
from tests.models import tiny


def page(program: Program) -> pages.ProgramPage:
    return program_page(program, graph_account(program))


def program(layers: int = 3) -> Program:
    return noble_fx.programs(noble_fx.transform(tiny(layers=layers), rank=4, seed=0, capture="fx"))[0]


def test_every_pass_that_rewrote_something_is_a_view():
    made = page(program())
    assert [view.name for view in made.views] == ["", "expose_linear", "insert_branch", "fuse_branch", "share_input"]
    assert made.views[1].rewrite == "layer(x)  ->  linear(x, layer.weight, layer.bias)"
    after = [row.after.text for run in made.views[0].runs for row in run.rows]
    assert after == [row.after.text for run in made.views[-1].runs for row in run.rows]
    assert made.title == "The graph that runs"
    assert made.without == ""


def test_more_equal_blocks_are_no_more_lines():
    few, many = (sum(len(run.rows) for run in page(program(n)).views[0].runs) for n in (2, 6))
    assert few == many


def test_equal_steps_are_one_line_with_all_nodes():
    steps = page(program()).steps
    first = steps[0]
    assert (first.rule, first.nodes[0], len(first.nodes)) == ("expose_linear", "blocks_0_q_proj", 3)
    assert {step.skipped for step in steps if step.rule == "share_input"} >= {"reads x alone"}
    assert sum(len(step.nodes) for step in steps) == len(program().history)


def test_many_steps_are_cut_off_with_a_word(monkeypatch):
    monkeypatch.setattr(pages, "STEPS", 2)
    monkeypatch.setattr(pages, "_NODES", 1)
    made = page(program())
    assert (len(made.steps), made.steps[0].more) == (2, 2)
    assert made.left_out > 10


def test_a_large_graph_is_shown_as_it_is_now(monkeypatch):
    monkeypatch.setattr(listing, "LIMIT", 5)
    monkeypatch.setattr(pages, "LIMIT", 5)
    made = page(program())
    assert made.views == []
    assert made.without == "a graph of more than 5 nodes is not kept as it was before the passes"
    assert "# blocks.1–2: 2 blocks equal to blocks.0" in [shown.text for shown in made.code]


def test_a_graph_of_which_nothing_was_noted():
    graph = fx.GraphModule(nn.Module(), fx.symbolic_trace(lambda x: x + 1).graph)
    made = page(Program(graph, (), History([Step("a", "b", "c", "d")]), "train"))
    assert made.title == "The graph that runs in training"
    assert made.without == "nothing was noted of it before the passes"
    assert [shown.text for shown in made.code] == ["def forward(x):", "add = x + 1", "return add"]
