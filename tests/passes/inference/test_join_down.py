"""W and D become one matrix, b and d one vector, where nothing else reads them."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from noble_fx.passes.check import check_rewrite
from noble_fx.passes.example import IN, OUT, RANK, Example, branch_operands, layer, layers, traced
from noble_fx.passes.inference.join_down import STORED_TWICE, join_down
from noble_fx.passes.inference.remove_dead import remove_dead
from noble_fx.passes.rule import run_passes
from noble_fx.schema import JOINED_DOWN, LINEAR

aten = torch.ops.aten


def without_down_bias() -> nn.Module:
    model = layer()
    model.noble.down_bias = None
    return model


def of(model, bias, joined_bias):
    return Example(
        before=lambda m, x: LINEAR(x, m.weight, bias(m), *branch_operands(m.noble)),
        after=lambda m, x: JOINED_DOWN(x, m.joined_weight, joined_bias(m), *branch_operands(m.noble)[2:]),
        truth=lambda m, x: F.linear(x, m.weight, bias(m)) + m.noble(x),
        model=model,
    )


EXAMPLES = {
    "own": join_down.example,
    "bias of D alone": of(layer, lambda m: None, lambda m: m.joined_bias),
    "bias alone": of(without_down_bias, lambda m: m.bias, lambda m: m.joined_bias),
    "no bias": of(without_down_bias, lambda m: None, lambda m: None),
    "a transposed weight": Example(
        before=lambda m, x: LINEAR(x, aten.t.default(aten.t.default(m.weight)), m.bias, *branch_operands(m.noble)),
        after=lambda m, x: JOINED_DOWN(x, m.joined_weight, m.joined_bias, *branch_operands(m.noble)[2:]),
        truth=lambda m, x: F.linear(x, m.weight, m.bias) + m.noble(x),
    ),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_rewrite(name):
    check_rewrite(join_down, EXAMPLES[name])


def tied() -> nn.Module:
    model = layers()
    model.k.weight = model.q.weight
    return model


def tied_down() -> nn.Module:
    model = layers()
    model.k.noble.down = model.q.noble.down
    return model


def mixed() -> nn.Module:
    model = layer()
    model.noble.down = nn.Parameter(model.noble.down.detach().bfloat16())
    return model


def both(m, x):
    return tuple(LINEAR(x, part.weight, part.bias, *branch_operands(part.noble)) for part in (m.q, m.k))


@pytest.mark.parametrize(
    ("build", "function", "reason"),
    [
        (tied, both, STORED_TWICE),
        (tied_down, both, STORED_TWICE),
        (
            layer,
            lambda m, x: LINEAR(x, m.weight, m.bias * x.mean(), *branch_operands(m.noble)),
            "its matrices are computed in the graph, not constant",
        ),
        (
            mixed,
            lambda m, x: LINEAR(x, m.weight, m.bias, *branch_operands(m.noble)),
            "W is torch.float32 and D torch.bfloat16",
        ),
    ],
    ids=["tied W", "tied D", "computed", "of two dtypes"],
)
def test_refusal(build, function, reason):
    graph_module = traced(function, build())
    before = str(graph_module.graph)
    assert {step.skipped for step in run_passes(graph_module, [join_down])} == {reason}
    assert str(graph_module.graph) == before


def test_the_old_matrices_can_be_removed():
    graph_module = traced(lambda m, x: LINEAR(x, m.weight, m.bias, *branch_operands(m.noble)), layer())
    steps = run_passes(graph_module, [join_down, remove_dead])
    assert [step.rule for step in steps if not step.skipped] == ["join_down", "remove_dead"]
    names = dict(graph_module.named_parameters())
    assert names["joined_weight"].shape == (OUT + RANK, IN)
    assert names["joined_bias"].shape == (OUT + RANK,)
    assert not {"weight", "bias", "noble.down", "noble.down_bias"} & set(names)
