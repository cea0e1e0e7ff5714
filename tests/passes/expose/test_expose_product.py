"""Every way to multiply with a chosen weight becomes linear(x, w, b)."""

import pytest
import torch
from torch.nn import functional as F

from noble_fx.passes.check import check_rewrite
from noble_fx.passes.example import EXPERTS, IN, OUT, Example, layer, parameter, traced
from noble_fx.passes.expose.expose_product import expose_product
from noble_fx.passes.rule import run_passes

aten = torch.ops.aten


def of_transposed(before, bias=False):
    """A product with w [IN, OUT], which linear takes transposed."""
    return Example(
        before=before,
        after=lambda m, x: F.linear(x, torch.t(m.w), x.sum(0)[:1] if bias else None),
        model=parameter(IN, OUT),
    )


EXAMPLES = {
    "linear": expose_product.example,
    "linear without a bias": Example(
        before=lambda m, x: aten.linear.default(x, m.weight), after=lambda m, x: F.linear(x, m.weight, None)
    ),
    "mm": of_transposed(lambda m, x: aten.mm.default(x, m.w)),
    "mm by name": of_transposed(lambda m, x: aten.mm.default(x, mat2=m.w)),
    "matmul": of_transposed(lambda m, x: aten.matmul.default(x, m.w)),
    "addmm": of_transposed(lambda m, x: aten.addmm.default(x.sum(0)[:1], x, m.w), bias=True),
    "addmm with factors of one": of_transposed(
        lambda m, x: aten.addmm.default(x.sum(0)[:1], x, m.w, beta=1, alpha=1), bias=True
    ),
    "mm with a transposed weight": Example(
        before=lambda m, x: aten.mm.default(x, aten.t.default(m.weight)),
        after=lambda m, x: F.linear(x, torch.t(aten.t.default(m.weight)), None),
    ),
    "a slice of rows": Example(
        before=lambda m, x: aten.linear.default(x, aten.slice.Tensor(m.weight, 0, 2, 5)),
        after=lambda m, x: F.linear(x, aten.slice.Tensor(m.weight, 0, 2, 5), None),
    ),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_rewrite(name):
    check_rewrite(expose_product, EXAMPLES[name])


REFUSALS = {
    "not selected": (layer, lambda m, x: aten.linear.default(x, m.noble.down)),
    "it multiplies from the left, W x, along another axis than the last": (
        parameter(OUT, IN),
        lambda m, x: aten.mm.default(m.w, x),
    ),
    "addmm with factors of its own": (parameter(IN, OUT), lambda m, x: aten.addmm.default(x, x, m.w, alpha=2)),
    "a product with a vector": (parameter(IN), lambda m, x: aten.matmul.default(x, m.w)),
    "stacked experts, not one linear map": (
        parameter(EXPERTS, IN, OUT, experts=EXPERTS),
        lambda m, x: aten.matmul.default(x, m.w),
    ),
}


@pytest.mark.parametrize("reason", REFUSALS)
def test_refusal(reason):
    model, function = REFUSALS[reason]
    graph_module = traced(function, model())
    before = str(graph_module.graph)
    (step,) = run_passes(graph_module, [expose_product])
    assert step.skipped == reason
    assert str(graph_module.graph) == before


def test_a_matrix_computed_from_the_input_is_no_site():
    graph_module = traced(lambda m, x: aten.mm.default(x, aten.t.default(x)), layer())
    (step,) = run_passes(graph_module, [expose_product])
    assert step.skipped == "not selected"
