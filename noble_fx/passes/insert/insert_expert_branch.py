"""Add the branches of stacked experts, one per matrix, beside the product that runs them all."""

from __future__ import annotations

import operator

import torch
from torch import fx

from noble_fx.passes.history import Skip
from noble_fx.passes.rule import Answer, Build, Target, rule
from noble_fx.sites.products import EXPERT_PRODUCTS, is_grouped


@rule(*EXPERT_PRODUCTS, torch.ops.aten.matmul.default, where=is_grouped)
def insert_expert_branch(build: Build, node: fx.Node, target: Target) -> Answer:
    """bmm(x, w [E, K, N])  ->  bmm(x, w) + nobles(x), and grouped(x, w, offsets) + nobles(x, offsets)"""
    found = target.product(node)
    if isinstance(found, Skip):
        return found
    product, path = found
    if product.expert is None:
        return Skip("one linear map, not stacked experts")
    axis, start, stop = product.view.axes[2]
    if (start, stop) != (0, target.shape_of(product.view.parameter)[axis]):  # type: ignore[index]
        return Skip("a product with a part of the weights")
    offsets = (node.args[2] if len(node.args) > 2 else node.kwargs["offs"],) if is_grouped(node) else ()
    return build.call(operator.add, build.again(), build.module(path, product.x, *offsets))
