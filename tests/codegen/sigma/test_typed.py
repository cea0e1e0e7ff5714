"""σ's typed graphs: float32, shapes known, derived operators taken apart."""

import pytest
import torch
from torch import nn

from noble_fx.branches import keys
from noble_fx.branches.trace import Untraceable
from noble_fx.codegen.sigma.operators.pointwise import aten
from noble_fx.codegen.sigma.typed import ROWS, plain_forward, typed_program
from tests.codegen.one_layer import branch_of


def targets(graph) -> set:
    return {node.target for node in graph.nodes if node.op == "call_function"}


def key_of(act, rank: int = 12) -> str:
    return branch_of(act, rank).fused_form().key


def test_shapes_say_which_axis_is_the_rows():
    program = typed_program(key_of("cosnet"), 12)
    for graph_module in (program.forward, program.backward):
        values = [
            node.meta["val"] for node in graph_module.graph.nodes if isinstance(node.meta.get("val"), torch.Tensor)
        ]
        assert {value.dtype for value in values} == {torch.float32}
        assert {size for value in values for size in value.shape} <= {ROWS, 12, 1}
    *_, output = program.backward.graph.nodes
    assert len(output.args[0]) == 2 + program.parameters


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
