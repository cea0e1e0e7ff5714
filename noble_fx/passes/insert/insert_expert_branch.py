"""Add the branches of stacked experts, one per matrix, beside the product that runs them all."""

from __future__ import annotations

import operator

import torch
from torch import fx

from noble_fx.passes.build import Build
from noble_fx.passes.example import EXPERTS, IN, OUT, Example, parameter
from noble_fx.passes.history import Skip
from noble_fx.passes.match import ModelGraph
from noble_fx.passes.rule import Answer, rule
from noble_fx.sites.products import EXPERT_PRODUCTS, is_grouped
from noble_fx.sites.views import bound

aten = torch.ops.aten

_EXAMPLE = Example(
    before=lambda m, x: aten.bmm.default(x, m.w),
    after=lambda m, x: aten.bmm.default(x, m.w) + m.noble.w(x),
    truth=lambda m, x: torch.stack([x[e] @ m.w[e] + noble(x[e]) for e, noble in enumerate(m.noble.w)]),
    model=parameter(EXPERTS, IN, OUT, experts=EXPERTS),
    inputs=((EXPERTS, 5, IN),),
)


@rule(*EXPERT_PRODUCTS, aten.matmul.default, where=is_grouped, example=_EXAMPLE)
def insert_expert_branch(build: Build, node: fx.Node, graph: ModelGraph) -> Answer:
    """bmm(x, w [E, K, N])  ->  bmm(x, w) + nobles(x), and grouped(x, w, offsets) + nobles(x, offsets)"""
    site = graph.product(node)
    if isinstance(site, Skip):
        return site
    product, path = site
    if product.expert is None:
        return Skip("one linear map, not stacked experts")
    axis, start, stop = product.view.axes[2]
    if (start, stop) != (0, graph.shape_of(product.view.parameter)[axis]):  # type: ignore[index]
        return Skip("a product with a part of the weights")
    offsets = (bound(node)["offs"],) if is_grouped(node) else ()
    return build.call(operator.add, build.again(), build.module(path, product.x, *offsets))
