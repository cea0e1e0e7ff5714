"""Lay a chosen layer's weight open, so that the passes after it see one kind of linear map."""

from __future__ import annotations

from torch import fx
from torch.nn import functional as F

from noble_fx.layers.base import Augmented
from noble_fx.layers.registry import row_of, why_eager
from noble_fx.passes.history import Skip
from noble_fx.passes.rule import Answer, Build, Target, rule


@rule(Augmented)
def expose_linear(build: Build, node: fx.Node, target: Target) -> Answer:
    """layer(x)  ->  linear(x, layer.weight, layer.bias)"""
    layer = target.module(node.target)
    row = row_of(layer) if layer is not None else None
    if layer is None or row is None or row.layout != "[N, K]" or why_eager(layer):
        return Skip(f"{type(layer).__name__} keeps its own forward")
    x = node.args[0] if node.args else node.kwargs["input"]
    bias = build.attribute(f"{node.target}.bias") if layer.bias is not None else None
    return build.call(F.linear, x, build.attribute(f"{node.target}.weight"), bias)
