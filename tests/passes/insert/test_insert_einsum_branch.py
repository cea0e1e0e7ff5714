"""The branch beside an einsum: its input with the features last, its result where the equation puts it."""

import pytest
import torch
from torch.nn import functional as F

from noble_fx.passes.check import check_rewrite
from noble_fx.passes.example import EXPERTS, IN, OUT, Example, parameter, traced
from noble_fx.passes.insert.insert_einsum_branch import insert_einsum_branch
from noble_fx.passes.rule import run_passes
from noble_fx.sites.products import EINSUM


def with_noble(equation, branch, weight_first=False):
    def before(m, x):
        return EINSUM(equation, [m.w, x] if weight_first else [x, m.w])

    return before, lambda m, x: before(m, x) + branch(m.noble.w, x)


def example(equation, branch, truth, shape, inputs, experts=0, weight_first=False):
    before, after = with_noble(equation, branch, weight_first)
    return Example(before, after, truth, parameter(*shape, experts=experts), (inputs,))


def stacked(m, x):
    """[E, B, N] of x [B, K] for every expert."""
    return torch.stack([x @ m.w[e] + branch(x) for e, branch in enumerate(m.noble.w)])


EXAMPLES = {
    "k first": insert_einsum_branch.example,
    "weight first": example(
        "kn,bk->nb",
        lambda noble, x: noble(x.permute([0, 1])).permute([1, 0]),
        lambda m, x: (x @ m.w + m.noble.w(x)).t(),
        (IN, OUT), (5, IN), weight_first=True,
    ),
    "no rows": example(
        "k,kn->n",
        lambda noble, x: noble(x.permute([0])).permute([0]),
        lambda m, x: x @ m.w + m.noble.w(x),
        (IN, OUT), (IN,),
    ),
    "two axes in": example(
        "bhd,hdn->bn",
        lambda noble, x: noble(x.permute([0, 1, 2]).flatten(-2)).permute([0, 1]),
        lambda m, x: x.flatten(1) @ m.w.flatten(0, 1) + m.noble.w(x.flatten(1)),
        (2, 3, OUT), (5, 2, 3),
    ),
    "two axes out": example(
        "bk,khd->hbd",
        lambda noble, x: noble(x.permute([0, 1])).unflatten(-1, [1, 7]).permute([1, 0, 2]),
        lambda m, x: (x @ m.w[:, 0] + m.noble.w(x)).unsqueeze(0),
        (IN, 1, 7), (5, IN),
    ),
    "the same rows for every expert": example(
        "bk,ekn->ebn",
        lambda noble, x: noble(x.permute([0, 1]).unsqueeze(-3)).permute([0, 1, 2]),
        stacked, (EXPERTS, IN, OUT), (5, IN), experts=EXPERTS,
    ),
    "rows of each expert": example(
        "bek,ekn->ben",
        lambda noble, x: noble(x.permute([1, 0, 2])).permute([1, 0, 2]),
        lambda m, x: torch.stack([x[:, e] @ m.w[e] + b(x[:, e]) for e, b in enumerate(m.noble.w)], 1),
        (EXPERTS, IN, OUT), (5, EXPERTS, IN), experts=EXPERTS,
    ),
    "one row of each expert": example(
        "ek,ekn->en",
        lambda noble, x: noble(x.permute([0, 1]).unsqueeze(-2)).squeeze(-2).permute([0, 1]),
        lambda m, x: torch.stack([x[e] @ m.w[e] + b(x[e]) for e, b in enumerate(m.noble.w)]),
        (EXPERTS, IN, OUT), (EXPERTS, IN), experts=EXPERTS,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EXAMPLES)
def test_rewrite(name):
    check_rewrite(insert_einsum_branch, EXAMPLES[name])


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda m, x: EINSUM("bk,kk->b", [x, m.w]), "einsum 'bk,kk->b', which is no product of one input with one"),
        (lambda m, x: EINSUM("...k,kn->...n", [x, m.w]), "einsum '...k,kn->...n', which is no product of one input"),
        (lambda m, x: EINSUM("bk,kn->bkn", [x, m.w]), "einsum 'bk,kn->bkn', which is no linear map"),
        (lambda m, x: EINSUM("kn,kn->n", [m.w, m.w]), "which is no product of one input with one weight"),
        (
            lambda m, x: EINSUM("bk,kn->bn", [x, torch.ops.aten.slice.Tensor(m.w, 1, 0, 3)]),
            "an einsum with a part of the weight",
        ),
        (lambda m, x: EINSUM("bk,bk->b", [x, x]), "not selected"),
        (lambda m, x: EINSUM("bk,rk->br", [x, m.noble.w.down]), "not selected"),
    ],
)
def test_refusal(function, reason):
    (step,) = run_passes(traced(function, parameter(IN, OUT)()), [insert_einsum_branch])
    assert reason in step.skipped


def test_the_layout_does_not_change_the_numbers():
    torch.manual_seed(0)
    model, x = parameter(IN, OUT)(), torch.randn(5, IN)
    graph_module = traced(lambda m, x: EINSUM("kn,bk->nb", [m.w, x]), model)
    run_passes(graph_module, [insert_einsum_branch])
    torch.testing.assert_close(graph_module(x).t(), F.linear(x, model.w.t()) + model.noble["w"](x))
