"""A graph reads the tensors of its folded branches."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import noble_fx
from noble_fx.passes.check import check_rewrite
from noble_fx.passes.example import Example, branch_operands, layer, traced
from noble_fx.passes.inference.fold_branch import fold_branch
from noble_fx.passes.rule import run_passes
from noble_fx.schema import LINEAR

aten = torch.ops.aten


def folded(act: str):
    """A layer whose branch is folded; `before` and `truth` have it as it was."""

    def build() -> nn.Module:
        model = layer(act).double()
        model.before = type(model.noble)(6, 7, 2, model.noble.config)
        model.before.load_state_dict(model.noble.state_dict())
        model.before.double().prepare()
        assert model.noble.fold() is None
        return model

    return build


def old_operands(m):
    return m.noble.down, *branch_operands(m.before)[1:]


UP_BIAS = Example(
    before=lambda m, x: LINEAR(x, m.weight, m.bias, *old_operands(m)),
    after=lambda m, x: LINEAR(x, m.weight, m.bias + m.noble.up_bias, *branch_operands(m.noble)),
    truth=lambda m, x: F.linear(x, m.weight, m.bias) + m.before(x),
    model=folded("silu_shift"),
)


def rows_before(m, x):
    down, down_bias, _, act, key = old_operands(m)
    return LINEAR(x, aten.slice.Tensor(m.weight, 0, 2, 5), None, down, down_bias, m.before.up[slice(2, 5)], act, key)


def rows_after(m, x):
    weight, rows = aten.slice.Tensor(m.weight, 0, 2, 5), slice(2, 5)
    down, down_bias, up, act, key = branch_operands(m.noble)
    return LINEAR(x, weight, None, down, down_bias, up[rows], act, key)


ROWS = Example(
    rows_before, rows_after, lambda m, x: F.linear(x, m.weight[2:5]) + m.before(x, slice(2, 5)), folded("cosnet")
)


@pytest.mark.parametrize("example", [fold_branch.example, UP_BIAS, ROWS])
def test_rewrite(example):
    check_rewrite(fold_branch, example)


@pytest.mark.parametrize(
    ("build", "function", "reason"),
    [
        (layer, lambda m, x: LINEAR(x, m.weight, m.bias, *branch_operands(m.noble)), "its branch is not folded"),
        (
            folded("cosnet"),
            lambda m, x: LINEAR(x, m.weight, m.bias, *branch_operands(m.noble)),
            "folded already",
        ),
        (
            layer,
            lambda m, x: LINEAR(x, m.weight, m.bias, m.noble.down * 2, *branch_operands(m.noble)[1:]),
            "its branch is not folded",
        ),
    ],
    ids=["not folded", "twice", "computed"],
)
def test_refusal(build, function, reason):
    (step,) = run_passes(traced(function, build()), [fold_branch])
    assert step.skipped == reason


def test_in_a_folded_model_there_is_nothing_left_to_do():
    model = noble_fx.fold(noble_fx.transform(nn.Sequential(nn.Linear(8, 8)), rank=3, capture="fx"))
    assert {step.skipped for step in run_passes(model, [fold_branch])} == {"folded already"}
