"""Add the branch beside a 1×1 convolution."""

from __future__ import annotations

import operator
from typing import Any

from torch import fx

from noble_fx.passes.history import Skip
from noble_fx.passes.rule import Answer, Build, Target, rule
from noble_fx.sites.products import CONVOLUTIONS


@rule(*CONVOLUTIONS)
def insert_channel_branch(build: Build, node: fx.Node, target: Target) -> Answer:
    """conv(x, w [N, K, 1, 1], b)  ->  conv(x, w, b) + movedim(noble(movedim(x, 1, -1)), -1, 1)"""
    found = target.product(node)
    if isinstance(found, Skip):
        return found
    product, path = found
    axis, start, stop = product.view.axes[0]
    if product.view.fixed or (start, stop) != (0, target.shape_of(product.view.parameter)[axis]):  # type: ignore[index]
        return Skip("a convolution with a part of the weight")
    positions = len(product.view.axes) - 2
    stride: Any = node.args[3] if len(node.args) > 3 else node.kwargs.get("stride", 1)
    strides = [stride] * positions if isinstance(stride, int) else list(stride) * (positions if len(stride) == 1 else 1)
    x, channels = product.x, -1 - positions
    if any(step != 1 for step in strides):
        x = build.call(operator.getitem, x, (..., *(slice(None, None, step) for step in strides)))
    moved = build.method("movedim", x, channels, -1)
    back = build.method("movedim", build.module(path, moved), -1, channels)
    return build.call(operator.add, build.again(), back)
