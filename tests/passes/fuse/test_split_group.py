"""A group taken apart is the sites that it was made of."""

import pytest
import torch

from noble_fx.ops.operands import Operands
from noble_fx.passes.check import check_rewrite
from noble_fx.passes.example import Example, branch_operands, layers
from noble_fx.passes.fuse.share_input import share_input
from noble_fx.passes.fuse.split_group import split_group
from noble_fx.passes.rule import run_passes
from noble_fx.schema import LINEAR, LINEAR_GROUP
from tests.passes.fuse.test_share_input import attention, calls


def operands(m) -> list[Operands]:
    return [Operands.of_linear(None, layer.weight, layer.bias, *branch_operands(layer.noble)) for layer in (m.q, m.k)]


def second_of_group(m, x):
    together = Operands.join(operands(m))
    return LINEAR_GROUP(x, *together.group_args()[1:])[1] * 2


def second_alone(m, x):
    return LINEAR(x, *operands(m)[1].linear_args()[1:]) * 2


SECOND = Example(second_of_group, second_alone, truth=lambda m, x: m.k(x) * 2, model=layers)


@pytest.mark.parametrize("example", [split_group.example, SECOND])
def test_rewrite(example):
    check_rewrite(split_group, example)


@pytest.mark.parametrize("settings", [{}, {"preset": "reference"}])
def test_there_and_back(settings):
    model, x = attention(**settings), torch.randn(3, 8)
    before, graph = model(x), model.graph
    assert LINEAR_GROUP in calls(graph)
    history = run_passes(model, [split_group])
    assert {(step.rule, step.skipped) for step in history} == {("split_group", "")}
    assert calls(graph).count(LINEAR) == 4
    assert LINEAR_GROUP not in calls(graph)
    torch.testing.assert_close(model(x), before)
    run_passes(model, [share_input])
    assert calls(graph).count(LINEAR_GROUP) == 1
    torch.testing.assert_close(model(x), before)


def test_once_apart_there_is_nothing_to_do():
    model = attention()
    run_passes(model, [split_group])
    assert run_passes(model, [split_group]) == ()
