"""What a program says of itself."""

import copy
import pickle
from dataclasses import FrozenInstanceError

import pytest
import torch
from torch import fx

from noble_fx.passes.example import layer, layers, traced
from noble_fx.passes.fuse.share_input import EXAMPLE, share_input
from noble_fx.passes.history import Changed, History, Program, Skip, Step, operators
from noble_fx.passes.rule import run_passes


def grouped() -> fx.GraphModule:
    graph_module = traced(EXAMPLE.before, layers())
    run_passes(graph_module, [share_input])
    return graph_module


def test_a_program_prints_its_graph():
    program = Program(grouped(), (), ())
    assert "linear_group" in str(program)
    assert str(program) == str(program.graph_module.graph)


def test_the_groups_of_a_program():
    assert Program(grouped(), (), ()).groups == (2,)
    assert Program(traced(EXAMPLE.before, layers()), (), ()).groups == ()


def test_groups_in_the_body_of_a_checkpoint_count():
    outer = traced(lambda m, x: torch.relu(x), layer())
    outer.add_submodule("body", grouped())
    assert Program(outer, (), ()).groups == (2,)


def test_answers_are_data():
    (node, *_) = fx.symbolic_trace(torch.nn.ReLU()).graph.nodes
    for answer, field in ((Skip("no"), "reason"), (Changed(node), "node"), (Step("r", "n", "b", ""), "rule")):
        with pytest.raises(FrozenInstanceError):
            setattr(answer, field, None)
    assert Step("r", "n", "before", "after").skipped == ""


def test_operators_of_a_graph_and_of_its_bodies():
    outer = traced(lambda m, x: torch.relu(x).flatten(1) + m.layer(x), torch.nn.ModuleDict({"layer": layer()}))
    assert operators(outer) == {"relu": 1, ".flatten": 1, type(outer.layer).__name__: 1, "add": 1}
    outer.add_submodule("body", grouped())
    assert operators(outer)["noble_fx::linear_group"] == 1


def test_the_passes_note_what_was_there_before_them():
    graph_module = traced(EXAMPLE.before, layers())
    history = run_passes(graph_module, [share_input])
    assert history.before["noble_fx::linear"] == 2
    program = Program(graph_module, (), history)
    assert program.operators_before == history.before
    assert program.operators["noble_fx::linear_group"] == 1
    assert Program(graph_module, (), ()).operators_before is None


def test_a_longer_history_begins_where_the_first_did():
    first, later = History([Step("a", "n", "b", "c")], {"x": 1}), History([Step("b", "n", "b", "c")], {"y": 1})
    assert ([step.rule for step in first + later], (first + later).before) == (["a", "b"], {"x": 1})
    assert (History() + later).before == {"y": 1}
    assert pickle.loads(pickle.dumps(first)).before == copy.deepcopy(first).before == {"x": 1}
