"""Add the branch beside a 1×1 convolution."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx
from torch.nn import functional as F

from noble_fx.passes.build import Build
from noble_fx.passes.example import IN, OUT, Example, parameter
from noble_fx.passes.history import Skip
from noble_fx.passes.match import ModelGraph
from noble_fx.passes.rule import Answer, rule
from noble_fx.sites.products import CONVOLUTIONS
from noble_fx.sites.views import bound

aten = torch.ops.aten


def _pixels(x: Any) -> Any:
    return x.permute(0, 2, 3, 1)


_EXAMPLE = Example(
    before=lambda m, x: aten.conv2d.default(x, m.w),
    after=lambda m, x: aten.conv2d.default(x, m.w) + m.noble.w(x.movedim(-3, -1)).movedim(-1, -3),
    truth=lambda m, x: (F.linear(_pixels(x), m.w[..., 0, 0]) + m.noble.w(_pixels(x))).permute(0, 3, 1, 2),
    model=parameter(OUT, IN, 1, 1),
    inputs=((2, IN, 4, 3),),
)


@rule(*CONVOLUTIONS, example=_EXAMPLE)
def insert_channel_branch(build: Build, node: fx.Node, graph: ModelGraph) -> Answer:
    """conv(x, w [N, K, 1, 1], b)  ->  conv(x, w, b) + movedim(noble(movedim(x, 1, -1)), -1, 1)"""
    site = graph.product(node)
    if isinstance(site, Skip):
        return site
    product, path = site
    axis, start, stop = product.view.axes[0]
    if product.view.fixed or (start, stop) != (0, graph.shape_of(product.view.parameter)[axis]):  # type: ignore[index]
        return Skip("a convolution with a part of the weight")
    positions = len(product.view.axes) - 2
    stride: Any = bound(node)["stride"]
    strides = [stride] * positions if isinstance(stride, int) else list(stride) * (positions if len(stride) == 1 else 1)
    x, channels = product.x, -1 - positions
    if any(step != 1 for step in strides):
        x = build.call(operator.getitem, x, (..., *(slice(None, None, step) for step in strides)))
    moved = build.method("movedim", x, channels, -1)
    back = build.method("movedim", build.module(path, moved), -1, channels)
    return build.call(operator.add, build.again(), back)
