"""A linear map and its branch become one operator, where the branch can be fused."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from noble_fx.passes.check import check_rewrite
from noble_fx.passes.example import Example, branch_operands, layer, layers, traced
from noble_fx.passes.fuse.fuse_branch import fuse_branch
from noble_fx.passes.rule import run_passes
from noble_fx.schema import LINEAR

aten = torch.ops.aten


def rows_fused(m, x):
    weight, rows = aten.slice.Tensor(m.weight, 0, 2, 5), slice(2, 5)
    down, down_bias, up, act, key = branch_operands(m.noble)
    return LINEAR(x, weight, None, down, down_bias, up[rows], act, key)


ROWS = Example(
    before=lambda m, x: F.linear(x, aten.slice.Tensor(m.weight, 0, 2, 5)) + m.noble(x, slice(2, 5)),
    after=rows_fused,
)
NO_BIAS = Example(
    before=lambda m, x: F.linear(x, m.weight) + m.noble(x),
    after=lambda m, x: LINEAR(x, m.weight, None, *branch_operands(m.noble)),
)
IDENTITY = Example(  # without a bias of D and tensors of σ
    before=lambda m, x: F.linear(x, m.weight, m.bias) + m.noble(x),
    after=lambda m, x: LINEAR(x, m.weight, m.bias, m.noble.down, None, m.noble.up, [], m.noble.key),
    model=lambda: layer(act="identity"),
)


def with_up_bias() -> nn.Module:
    """As a folded branch has one."""
    model = layer()
    model.noble.up_bias = nn.Parameter(torch.randn(model.out_features))
    return model


UP_BIAS = Example(
    before=lambda m, x: F.linear(x, m.weight, m.bias) + m.noble(x),
    after=lambda m, x: LINEAR(x, m.weight, m.bias + m.noble.up_bias, *branch_operands(m.noble)),
    model=with_up_bias,
)
UP_BIAS_ALONE = Example(
    before=lambda m, x: F.linear(x, m.weight) + m.noble(x),
    after=lambda m, x: LINEAR(x, m.weight, m.noble.up_bias, *branch_operands(m.noble)),
    model=with_up_bias,
)


@pytest.mark.parametrize("example", [fuse_branch.example, ROWS, NO_BIAS, IDENTITY, UP_BIAS, UP_BIAS_ALONE])
def test_rewrite(example):
    check_rewrite(fuse_branch, example)


@pytest.mark.parametrize(
    ("model", "function", "reason"),
    [
        (layer, lambda m, x: F.linear(x, m.weight) + m.bias, "not a branch"),
        (layer, lambda m, x: m.noble(x) + m.noble(x), "not a branch"),
        (layer, lambda m, x: torch.relu(F.linear(x, m.weight)) + m.noble(x), "not a branch"),
        (layers, lambda m, x: F.linear(x, m.q.weight) + m.k(x), "not a branch"),
        (lambda: layer(fused=False), lambda m, x: F.linear(x, m.weight) + m.noble(x), "fuse=False"),
    ],
    ids=["a parameter", "no product", "something in between", "another layer", "not asked for"],
)
def test_refusal(model, function, reason):
    graph_module = traced(function, model())
    before = str(graph_module.graph)
    (step,) = run_passes(graph_module, [fuse_branch])
    assert step.skipped == reason
    assert str(graph_module.graph) == before
