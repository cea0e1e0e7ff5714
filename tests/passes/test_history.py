"""What a program says of itself."""

from dataclasses import FrozenInstanceError

import pytest
import torch
from torch import fx

from noble_fx.passes.example import layer, layers, traced
from noble_fx.passes.fuse.share_input import EXAMPLE, share_input
from noble_fx.passes.history import Changed, Program, Skip, Step
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
