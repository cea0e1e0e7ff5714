"""Lay a chosen layer's weight open, so that the passes after it see one kind of linear map."""

from __future__ import annotations

from typing import Any

from torch import fx, nn
from torch.nn import functional as F

from noble_fx.layers.base import Augmented
from noble_fx.layers.registry import row_of, why_eager
from noble_fx.layers.structured import Structured
from noble_fx.passes import example
from noble_fx.passes.build import Build
from noble_fx.passes.history import Skip
from noble_fx.passes.match import ModelGraph
from noble_fx.passes.rule import Answer, rule

_EXAMPLE = example.Example(
    before=lambda m, x: m.q(x),
    after=lambda m, x: F.linear(x, m.q.weight, m.q.bias),
    truth=lambda m, x: nn.Linear.forward(m.q, x),  # the branch comes back by `insert_branch`
    model=example.layers,
)


@rule(Augmented, example=_EXAMPLE)
def expose_linear(build: Build, node: fx.Node, graph: ModelGraph) -> Answer:
    """layer(x)  ->  linear(x, layer.weight, layer.bias)"""
    layer: Any = graph.module(node.target)
    row = row_of(layer)
    if row is None or row.layout != "[N, K]" or why_eager(layer) is not None or isinstance(layer, Structured):
        return Skip(f"{type(layer).__name__} keeps its own forward")
    x = node.args[0] if node.args else next(iter(node.kwargs.values()))
    bias = build.attribute(f"{node.target}.bias") if layer.bias is not None else None
    return build.call(F.linear, x, build.attribute(f"{node.target}.weight"), bias)
