"""The branch beside a linear map: of a layer, of rows of a weight, of one expert's matrix."""

import pytest
import torch
from torch.nn import functional as F

from noble_fx.passes.check import check_rewrite
from noble_fx.passes.example import EXPERTS, IN, OUT, Example, layer, layers, parameter, traced
from noble_fx.passes.insert.insert_branch import insert_branch
from noble_fx.passes.rule import run_passes

aten = torch.ops.aten

ROWS = Example(
    before=lambda m, x: F.linear(x, aten.slice.Tensor(m.weight, 0, 2, 5)),
    after=lambda m, x: F.linear(x, aten.slice.Tensor(m.weight, 0, 2, 5), None) + m.noble(x, slice(2, 5)),
    truth=lambda m, x: m(x)[..., 2:5] - m.bias[2:5],
)
EXPERT = Example(
    before=lambda m, x: F.linear(x, aten.select.int(m.w, 0, 1)),
    after=lambda m, x: F.linear(x, aten.select.int(m.w, 0, 1), None) + getattr(m.noble.w, "1")(x),
    truth=lambda m, x: F.linear(x, m.w[1]) + m.noble.w[1](x),
    model=parameter(EXPERTS, OUT, IN, experts=EXPERTS),
)
TRANSPOSED = Example(
    before=lambda m, x: F.linear(x, torch.t(m.w)),
    after=lambda m, x: F.linear(x, torch.t(m.w), None) + m.noble.w(x),
    truth=lambda m, x: x @ m.w + m.noble.w(x),
    model=parameter(IN, OUT),
)


def called_twice(m, x):
    y = x + 1
    return (F.linear(x, m.weight, None) + m.noble(x)) * (F.linear(y, m.weight, None) + m.noble(y))


SHARED = Example(  # two sums, one branch
    before=lambda m, x: F.linear(x, m.weight) * F.linear(x + 1, m.weight),
    after=called_twice,
    truth=lambda m, x: (m(x) - m.bias) * (m(x + 1) - m.bias),
)


@pytest.mark.parametrize("example", [insert_branch.example, ROWS, EXPERT, TRANSPOSED, SHARED])
def test_rewrite(example):
    check_rewrite(insert_branch, example)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda m, x: F.linear(x, m.noble.down), "not selected"),
        (lambda m, x: F.linear(x, m.weight * x.mean()), "not selected"),
        (lambda m, x: F.linear(x, m.weight) + m.noble(x), "has its branch already"),
    ],
)
def test_refusal(function, reason):
    graph_module = traced(function, layer())
    before = str(graph_module.graph)
    (step,) = run_passes(graph_module, [insert_branch])
    assert step.skipped == reason
    assert str(graph_module.graph) == before


def test_other_sums_stay_what_they_are():
    graph_module = traced(lambda m, x: F.linear(x, m.q.weight) + F.linear(x, m.k.noble.down)[:, :1], layers())
    assert [step.skipped for step in run_passes(graph_module, [insert_branch])] == ["", "not selected"]
