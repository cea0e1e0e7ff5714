"""A user's export is plain aten; this package's own keeps the operator."""

import threading

import pytest
import torch
from torch import nn

import noble_fx
from noble_fx.captures.torch_export import export_program
from noble_fx.exporting import leaves_this_process, own_export

ANSWERS: list[bool] = []  # no attribute of the module's: torch.export puts those back


class Asks(nn.Module):
    def forward(self, x):
        ANSWERS.append(leaves_this_process())
        return x + 1


def answers():
    ANSWERS.clear()
    torch.export.export(Asks(), (torch.ones(2),), strict=False)
    return ANSWERS


def layer():
    return noble_fx.transform(nn.Sequential(nn.Linear(8, 8)), rank=4, select="all", seed=0)


def operators(program):
    return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}


def test_outside_of_an_export_nothing_leaves():
    assert not leaves_this_process()
    with own_export():
        assert not leaves_this_process()


def test_a_users_export_leaves_and_an_own_one_does_not():
    assert answers()
    assert all(answers())
    with own_export():
        assert answers()
        assert not any(answers())


def test_an_own_export_is_one_of_its_thread():
    with own_export():
        thread = threading.Thread(target=answers)
        thread.start()
        thread.join()
    assert ANSWERS
    assert all(ANSWERS)


@pytest.mark.parametrize("strict", [False, True])
def test_a_users_program_of_a_transformed_model_names_no_key(strict):
    model, x = layer(), torch.randn(3, 8)
    program = torch.export.export(model, (x,), strict=strict)
    assert not any("noble_fx" in name for name in operators(program))
    torch.testing.assert_close(program.module()(x), model(x))


def test_a_program_of_our_own_keeps_the_node():
    program = export_program(layer(), (torch.randn(3, 8),), {}, None)
    assert "noble_fx.linear.default" in operators(program)


def test_the_compiler_keeps_the_node():
    model, x, seen = layer(), torch.randn(3, 8), []

    def backend(graph_module, inputs):
        seen.extend(node.target for node in graph_module.graph.nodes if node.op == "call_function")
        return graph_module

    torch.compile(model, backend=backend, fullgraph=True)(x)
    assert torch.ops.noble_fx.linear.default in seen
