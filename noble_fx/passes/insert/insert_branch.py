"""Add the branch beside a chosen linear map."""

from __future__ import annotations

import operator

from torch import fx
from torch.nn import functional as F

from noble_fx.passes.build import Build
from noble_fx.passes.example import Example
from noble_fx.passes.history import Skip
from noble_fx.passes.match import ModelGraph
from noble_fx.passes.rule import Answer, rule

_EXAMPLE = Example(
    before=lambda m, x: F.linear(x, m.weight, m.bias),
    after=lambda m, x: F.linear(x, m.weight, m.bias) + m.noble(x),
    truth=lambda m, x: m(x),
)


@rule(F.linear, example=_EXAMPLE)
def insert_branch(build: Build, node: fx.Node, graph: ModelGraph) -> Answer:
    """linear(x, w, b)  ->  linear(x, w, b) + noble(x), and for rows i:j of w those rows of noble"""
    site = graph.product(node)
    if isinstance(site, Skip):
        return site
    product, path = site
    if any(graph.branch(other) for user in node.users for other in user.args):
        return Skip("has its branch already")
    if product.view.fixed:
        path = f"{path}.{next(iter(product.view.fixed.values()))}"  # the expert whose matrix this is
    axis, start, stop = product.view.axes[0]
    whole = (start, stop) == (0, graph.shape_of(product.view.parameter)[axis])  # type: ignore[index]
    again = build.call(F.linear, product.x, product.weight, product.bias)
    rows = () if whole else (slice(start, stop),)
    return build.call(operator.add, again, build.module(path, product.x, *rows))
