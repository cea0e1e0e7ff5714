"""Views of views are views; a view of the same shape is nothing."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from noble_fx.passes.build import Build
from noble_fx.passes.example import Example
from noble_fx.passes.history import Skip
from noble_fx.passes.match import ModelGraph
from noble_fx.passes.rule import Answer, rule

aten = torch.ops.aten
VIEWS = (aten.view.default, aten.reshape.default, aten._unsafe_view.default)


def is_view(node: object) -> bool:
    """True for a change of shape alone."""
    return isinstance(node, fx.Node) and node.target in VIEWS


_EXAMPLE = Example(
    before=lambda m, x: aten.reshape.default(aten.view.default(x, [2, 3, 4]), [3, 8]),
    after=lambda m, x: aten.reshape.default(x, [3, 8]),
    inputs=((6, 4),),
)


@rule(*VIEWS, example=_EXAMPLE)
def merge_view(build: Build, node: fx.Node, graph: ModelGraph) -> Answer:
    """view(view(x, s), t)  ->  view(x, t), and view(x, t)  ->  x where x has that shape"""
    x = node.args[0]
    assert isinstance(x, fx.Node)
    if is_view(x):
        x = x.args[0]  # the pass goes from front to back, so this is no view itself
        assert isinstance(x, fx.Node)
    before, after = x.meta.get("val"), node.meta.get("val")
    if isinstance(before, Tensor) and isinstance(after, Tensor) and _same(before, after):
        return x
    if x is node.args[0]:
        return Skip("a view of what is no view")
    return build.call(aten.reshape.default, x, node.args[1])


def _same(before: Tensor, after: Tensor) -> bool:
    return len(before.shape) == len(after.shape) and all(map(_equal, before.shape, after.shape))


def _equal(size: int | torch.SymInt, other: int | torch.SymInt) -> bool:
    """Known to be equal; asks the expressions, because comparing symbolic sizes would put a guard on the graph."""
    return str(size) == str(other)
