"""σ's typed graphs: float32, shapes known, derived operators taken apart."""

import pytest
import torch
from torch import nn

from noble_fx.branches import keys
from noble_fx.branches.trace import Untraceable
from noble_fx.codegen.sigma import typed
from noble_fx.codegen.sigma.operators.pointwise import aten
from noble_fx.codegen.sigma.typed import ROWS, plain_forward, typed_program
from tests.codegen.one_layer import Pointwise, branch_of, check


def targets(graph) -> set:
    return {node.target for node in graph.nodes if node.op == "call_function"}


def key_of(act, rank: int = 12) -> str:
    return branch_of(act, rank).fused_form().key


def test_shapes_say_which_axis_is_the_rows():
    program = typed_program(key_of("cosnet"), 12)
    for graph_module in (program.forward, program.backward):
        values = [node for node in graph_module.graph.nodes if isinstance(node.meta.get("val"), torch.Tensor)]
        assert {node.meta["val"].dtype for node in values} == {torch.float32}
        assert {size for node in values for size in node.meta["shape"]} <= {ROWS, 12, 1}
    *_, output = program.backward.graph.nodes
    assert len(output.args[0]) == 2 + program.parameters


@pytest.fixture
def few_rows(monkeypatch):
    """σ is traced with as many rows as it has channels."""
    monkeypatch.setattr(typed, "_TRACED", (12, 13))
    typed_program.cache_clear()
    yield
    typed_program.cache_clear()


class Widths(nn.Module):
    """As many hidden channels as rows of either trace, and as many again as the bottleneck."""

    def __init__(self, rank):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(rank, 13), nn.Linear(13, 12), nn.Linear(12, rank)

    def forward(self, h):
        return self.third(self.second(self.first(h).sin()).cos())


@pytest.mark.parametrize("rank", [12, 13])
def test_no_width_is_taken_for_the_rows(few_rows, rank):
    check(branch_of(Widths, rank), rows=12)


def test_sizes_that_are_arguments_are_marked_too(few_rows):
    graph = typed_program(
        key_of(lambda rank: Pointwise(lambda h: h + torch.ones(12, 12).sum() + h.new_ones(h.shape))), 12
    )
    (wide,) = [node for node in graph.forward.graph.nodes if node.target is aten.new_ones.default]
    (square,) = [node for node in graph.forward.graph.nodes if node.target is aten.ones.default]
    assert (wide.args[1], square.args[0]) == ([ROWS, 12], [12, 12])


def test_a_number_of_rows_that_is_computed_with_is_refused(few_rows):
    with pytest.raises(Untraceable, match="number of rows"):
        typed._graph(lambda h: h * h.shape[0], lambda rows: [torch.empty(rows, 3)], {})
    with pytest.raises(Untraceable, match="for another number of rows"):
        typed._graph(lambda h: h.sin() if h.shape[0] == 12 else h.cos(), lambda rows: [torch.empty(rows, 3)], {})


def test_derived_operators_are_taken_apart_for_the_kernels_only():
    key = key_of("gelu")
    assert aten.gelu.default not in targets(typed_program(key, 12).forward.graph)
    assert aten.erf.default in targets(typed_program(key, 12).forward.graph)
    assert targets(plain_forward(key, 12)) == {aten.gelu.default}


def test_forward_inside_backward_is_computed_once():
    graph = typed_program(key_of("cos"), 12).backward.graph
    assert sum(node.target is aten.cos.default for node in graph.nodes) == 1


def test_a_random_activation_has_no_typed_graph():
    key = key_of("cos")
    assert typed_program(key, 12) is typed_program(key, 12)

    class Random(nn.Module):
        def forward(self, h):
            return h * torch.rand_like(h)

    with pytest.raises(Untraceable, match="draws random numbers"):
        typed_program(keys.activation_key(Random(), "random", 12), 12)
