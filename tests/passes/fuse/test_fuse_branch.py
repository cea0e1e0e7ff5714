"""A linear map and its branch become one operator, where the branch can be fused."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import noble_fx
from noble_fx.passes.check import check_rewrite
from noble_fx.passes.example import Example, branch_operands, layer, layers, traced
from noble_fx.passes.fuse.fuse_branch import fuse_branch
from noble_fx.passes.insert.insert_branch import insert_branch
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


class Scaled(noble_fx.Branch):
    """A kind of a user's own without a fused form: x Dᵀ Uᵀ, its rows scaled."""

    kind = "scaled"

    def __init__(self, in_features, out_features, rank, config, role="other"):
        super().__init__(in_features, out_features, rank, config, role)
        self.down, self.up = nn.Parameter(torch.empty(rank, in_features)), nn.Parameter(torch.empty(out_features, rank))
        self.scale = nn.Parameter(torch.empty(out_features))
        self.reset_parameters()

    def reset_parameters(self):
        for parameter in self.parameters():
            nn.init.normal_(parameter)

    def forward(self, x, rows=None):
        y = F.linear(F.linear(x, self.down), self.up) * self.scale
        return y if rows is None else y[..., rows]


def with_kind(kind) -> nn.Module:
    model = layer()
    model.noble = kind(model.in_features, model.out_features, 2, model.noble.config)
    return model


@pytest.mark.parametrize(
    ("unfused", "reason"),
    [
        ("", "branches of kind 'scaled' have no fused form"),
        ("its layer keeps its forward", "its layer keeps its forward"),
    ],
)
def test_a_kind_without_a_fused_form_is_inserted_and_left_as_a_call(unfused, reason):
    torch.manual_seed(0)
    model = with_kind(Scaled)
    model.noble.unfused = unfused
    graph_module, x = traced(lambda m, x: F.linear(x, m.weight, m.bias), model), torch.randn(5, model.in_features)
    steps = run_passes(graph_module, [insert_branch, fuse_branch])
    assert [(step.rule, step.skipped) for step in steps] == [("insert_branch", ""), ("fuse_branch", reason)]
    expected = F.linear(x, model.weight, model.bias) + model.noble(x)
    assert torch.equal(graph_module(x), expected)
    steps = run_passes(graph_module, [insert_branch, fuse_branch])
    assert [step.skipped for step in steps] == ["has its branch already", reason]


class Renamed(noble_fx.NobleBranch):
    """A kind whose operands have names of their own."""

    kind = "renamed"

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.narrow = nn.ParameterDict({"d": self.down})
        del self.down

    def fused_form(self):
        form = noble_fx.NobleBranch.fused_form(self)
        return dataclasses.replace(form, down="narrow.d")

    def reset_parameters(self):
        nn.init.normal_(self.up)
        nn.init.normal_(self.down)
        if self.down_bias is not None:
            nn.init.normal_(self.down_bias)


def test_a_kind_says_which_of_its_tensors_are_the_operands():
    torch.manual_seed(0)
    model = with_kind(Renamed)
    model.noble.prepare()
    graph_module = traced(lambda m, x: F.linear(x, m.weight, m.bias) + m.noble(x), model)
    (step,) = run_passes(graph_module, [fuse_branch])
    assert step.skipped == ""
    (fused,) = (node for node in graph_module.graph.nodes if node.target is LINEAR)
    assert fused.args[3].target == "noble.narrow.d"
    x = torch.randn(5, model.in_features)
    plain = layer().noble
    plain.down, plain.act, plain.up, plain.down_bias = (
        model.noble.narrow["d"],
        model.noble.act,
        model.noble.up,
        model.noble.down_bias,
    )
    torch.testing.assert_close(graph_module(x), F.linear(x, model.weight, model.bias) + plain(x))
