"""Bring the ways to write a linear map with a weight into the one form that the passes after it know."""

from __future__ import annotations

import torch
from torch import fx
from torch.nn import functional as F

from noble_fx.passes.build import Build
from noble_fx.passes.example import Example
from noble_fx.passes.history import Skip
from noble_fx.passes.match import ModelGraph
from noble_fx.passes.rule import Answer, rule
from noble_fx.sites.products import LINEAR_PRODUCTS

_EXAMPLE = Example(
    before=lambda m, x: torch.ops.aten.linear.default(x, m.weight, m.bias),
    after=lambda m, x: F.linear(x, m.weight, m.bias),
)


@rule(*(product for product in LINEAR_PRODUCTS if product is not F.linear), example=_EXAMPLE)
def expose_product(build: Build, node: fx.Node, graph: ModelGraph) -> Answer:
    """aten.linear(x, w, b), addmm(b, x, wᵀ), mm(x, wᵀ), matmul(x, wᵀ)  ->  linear(x, w, b)"""
    site = graph.product(node)
    if isinstance(site, Skip):
        return site
    product, _ = site
    if product.expert is not None:
        return Skip("stacked experts, not one linear map")
    weight = build.call(torch.t, product.weight) if product.inner == (0,) else product.weight
    return build.call(F.linear, product.x, weight, product.bias)
