"""Without its branch a site is the base model's linear map again, whatever had become of it."""

import copy

import pytest
import torch
from torch.nn import functional as F

import noble_fx
from noble_fx.passes.check import check_rewrite
from noble_fx.passes.example import Example, branch_operands, layer, layers, traced
from noble_fx.passes.fuse.share_input import EXAMPLE as SHARED
from noble_fx.passes.insert.drop_branch import drop_branch
from noble_fx.passes.pipeline import PIPELINES
from noble_fx.passes.rule import run_passes
from noble_fx.schema import LINEAR, LINEAR_GROUP
from tests.models import loud


def both(m, x):
    return F.linear(x, m.q.weight, m.q.bias), F.linear(x, m.k.weight, m.k.bias)


UNFUSED = Example(
    before=lambda m, x: F.linear(x, m.weight, m.bias) + m.noble(x),
    after=lambda m, x: F.linear(x, m.weight, m.bias),
    truth=lambda m, x: F.linear(x, m.weight, m.bias),
)
GROUP = Example(before=SHARED.after, after=both, truth=both, model=layers)
NO_BIAS = Example(
    before=lambda m, x: LINEAR(x, m.weight, None, *branch_operands(m.noble)),
    after=lambda m, x: F.linear(x, m.weight, None),
    truth=lambda m, x: F.linear(x, m.weight),
)


@pytest.mark.parametrize("example", [drop_branch.example, UNFUSED, GROUP, NO_BIAS])
def test_rewrite(example):
    check_rewrite(drop_branch, example)


def test_another_sum_is_left_alone():
    graph_module = traced(lambda m, x: F.linear(x, m.weight) + m.bias, layer())
    (step,) = run_passes(graph_module, [drop_branch])
    assert step.skipped == "not a branch"


class Attention(torch.nn.Module):
    def __init__(self, bias: bool):
        super().__init__()
        self.q, self.k = torch.nn.Linear(8, 8, bias=bias), torch.nn.Linear(8, 4, bias=bias)
        self.out = torch.nn.Linear(12, 8)

    def forward(self, x):
        return self.out(torch.cat([self.q(x), self.k(x)], -1))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("act", ["cosnet", "silu_shift"])  # a folded shift leaves a bias of U
def test_the_way_back_of_a_folded_model_is_the_base_model(act, bias):
    torch.manual_seed(0)
    plain, x = Attention(bias).eval(), torch.randn(5, 8)
    expected = plain(x)
    folded = noble_fx.fold(loud(noble_fx.transform(copy.deepcopy(plain), rank=2, act=act, capture="fx", seed=0)))
    targets = [node.target for node in folded.graph.nodes]
    assert (targets.count(LINEAR), targets.count(LINEAR_GROUP)) == (1, 1)
    assert not torch.allclose(folded(x), expected)
    run_passes(folded, PIPELINES["base"])
    with torch.no_grad():
        assert torch.equal(folded(x), expected)
    assert not any(".noble" in str(node.target) for node in folded.graph.nodes)
