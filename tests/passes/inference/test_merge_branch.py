"""A linear branch disappears in the layer's weight."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from noble_fx.passes.check import check_rewrite
from noble_fx.passes.example import Example, branch_operands, layer, layers, traced
from noble_fx.passes.inference.merge_branch import merge_branch
from noble_fx.passes.inference.remove_dead import remove_dead
from noble_fx.passes.rule import run_passes
from noble_fx.schema import LINEAR


def identity() -> nn.Module:
    return layer("identity")


def with_down_bias() -> nn.Module:
    model = identity()
    model.noble.down_bias = nn.Parameter(torch.randn(model.noble.rank))
    return model


def of(model, bias, merged_bias):
    def truth(m, x):
        h = F.linear(x, m.noble.down, m.noble.down_bias)
        return F.linear(x, m.weight, bias(m)) + F.linear(h, m.noble.up)

    return Example(
        before=lambda m, x: LINEAR(x, m.weight, bias(m), *branch_operands(m.noble)),
        after=lambda m, x: F.linear(x, m.merged_weight, merged_bias(m)),
        truth=truth,
        model=model,
    )


EXAMPLES = {
    "own": merge_branch.example,
    "no bias": of(identity, lambda m: None, lambda m: None),
    "bias of D alone": of(with_down_bias, lambda m: None, lambda m: m.merged_bias),
    "both": of(with_down_bias, lambda m: m.bias, lambda m: m.merged_bias),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_rewrite(name):
    check_rewrite(merge_branch, EXAMPLES[name])


def tied() -> nn.Module:
    model = nn.ModuleDict({"q": identity(), "k": identity()})
    model.k.weight = model.q.weight
    return model


def both(m, x):
    return tuple(LINEAR(x, part.weight, part.bias, *branch_operands(part.noble)) for part in (m.q, m.k))


@pytest.mark.parametrize(
    ("build", "function", "reason"),
    [
        (layers, both, "its branch is not linear"),
        (tied, both, "another product reads the same matrix, which would be stored twice"),
        (
            identity,
            lambda m, x: (LINEAR(x, m.weight * x.mean(), m.bias, *branch_operands(m.noble)),),
            "its matrices are computed in the graph, not constant",
        ),
    ],
    ids=["not linear", "tied", "computed"],
)
def test_refusal(build, function, reason):
    graph_module = traced(function, build())
    before = str(graph_module.graph)
    assert {step.skipped for step in run_passes(graph_module, [merge_branch])} == {reason}
    assert str(graph_module.graph) == before


def test_the_sum_is_formed_in_float64():
    torch.manual_seed(0)
    model = identity().to(torch.bfloat16)
    exact = model.weight.double() + model.noble.up.double() @ model.noble.down.double()
    graph_module = traced(lambda m, x: LINEAR(x, m.weight, m.bias, *branch_operands(m.noble)), model)
    run_passes(graph_module, [merge_branch])
    assert torch.equal(graph_module.merged_weight, exact.to(torch.bfloat16))


def test_the_old_tensors_can_be_removed():
    graph_module = traced(lambda m, x: LINEAR(x, m.weight, m.bias, *branch_operands(m.noble)), identity())
    run_passes(graph_module, [merge_branch, remove_dead])
    assert sorted(dict(graph_module.named_parameters())) == ["bias", "merged_weight"]
