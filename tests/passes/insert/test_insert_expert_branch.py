"""One branch an expert, beside the product that runs them all."""

import pytest
import torch

from noble_fx.passes.check import check_rewrite
from noble_fx.passes.example import EXPERTS, IN, OUT, Example, layer, parameter, traced
from noble_fx.passes.insert.insert_expert_branch import insert_expert_branch
from noble_fx.passes.rule import run_passes

aten = torch.ops.aten
STACKED = parameter(EXPERTS, IN, OUT, experts=EXPERTS)


def each(m, x):
    return torch.stack([x[e] @ m.w[e] + branch(x[e]) for e, branch in enumerate(m.noble.w)])


def of(before, truth=each, model=STACKED, inputs=((EXPERTS, 5, IN),)):
    return Example(before, lambda m, x: before(m, x) + m.noble.w(x), truth, model, inputs)


EXAMPLES = {
    "bmm": insert_expert_branch.example,
    "transposed": of(
        lambda m, x: aten.bmm.default(x, aten.transpose.int(m.w, 1, 2)),
        lambda m, x: torch.stack([x[e] @ m.w[e].t() + branch(x[e]) for e, branch in enumerate(m.noble.w)]),
        parameter(EXPERTS, OUT, IN, experts=EXPERTS),
    ),
    "baddbmm": of(
        lambda m, x: aten.baddbmm.default(x[..., :1], x, m.w, beta=2), lambda m, x: each(m, x) + 2 * x[..., :1]
    ),
    "matmul": of(
        lambda m, x: aten.matmul.default(x, m.w),
        lambda m, x: torch.stack([each(m, part) for part in x]),
        inputs=((2, EXPERTS, 5, IN),),
    ),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_rewrite(name):
    check_rewrite(insert_expert_branch, EXAMPLES[name])


@pytest.mark.parametrize("by_name", [False, True])
def test_rows_of_a_grouped_product_go_to_their_own_expert(by_name):
    def function(m, x, offsets):
        args, kwargs = ((), {"offs": offsets}) if by_name else ((offsets,), {})
        return aten._grouped_mm.default(x, m.w, *args, **kwargs)

    torch.manual_seed(0)
    model = parameter(EXPERTS, 16, 8, experts=0)()
    graph_module = traced(function, model)
    (step,) = run_passes(graph_module, [insert_expert_branch])
    assert step.skipped == ""
    (call,) = (node for node in graph_module.graph.nodes if node.op == "call_module")
    assert [arg.name for arg in call.args] == ["x", "offsets"]
    assert call.target == "noble.w"


@pytest.mark.parametrize(
    ("model", "function", "reason"),
    [
        (layer, lambda m, x: aten.matmul.default(x, aten.t.default(m.weight)), "one linear map, not stacked experts"),
        (layer, lambda m, x: aten.bmm.default(x, x), "not selected"),
        (STACKED, lambda m, x: aten.bmm.default(m.w, x), "not selected"),
        (
            STACKED,
            lambda m, x: aten.baddbmm.default(x, x, m.w, alpha=2),
            "stacked matrices in a product with factors of its own or of an unusual shape",
        ),
        (
            STACKED,
            lambda m, x: aten.bmm.default(x, aten.slice.Tensor(m.w, 2, 0, 3)),
            "a product with a part of the weights",
        ),
    ],
)
def test_refusal(model, function, reason):
    (step,) = run_passes(traced(function, model()), [insert_expert_branch])
    assert step.skipped == reason
