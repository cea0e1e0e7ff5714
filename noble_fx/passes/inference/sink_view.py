"""Move a change of shape behind the pointwise maths after it, where it may meet another one and vanish."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, fx

from noble_fx.passes.build import Build
from noble_fx.passes.example import Example
from noble_fx.passes.history import Skip
from noble_fx.passes.inference.merge_view import is_view
from noble_fx.passes.match import ModelGraph
from noble_fx.passes.rule import Answer, rule

aten = torch.ops.aten


def is_pointwise(node: fx.Node) -> bool:
    """True for pointwise maths of one result and nothing but tensors and numbers."""
    tags = getattr(node.target, "tags", ())
    return torch.Tag.pointwise in tags and isinstance(node.meta.get("val"), Tensor) and not node.kwargs.get("out")


_EXAMPLE = Example(
    before=lambda m, x: aten.relu.default(aten.view.default(x, [2, 3, 4])),
    after=lambda m, x: aten.reshape.default(aten.relu.default(x), [2, 3, 4]),
    inputs=((6, 4),),
)


@rule(where=is_pointwise, example=_EXAMPLE)
def sink_view(build: Build, node: fx.Node, graph: ModelGraph) -> Answer:
    """f(view(a), view(b))  ->  view(f(a, b)), for a and b of one shape"""
    tensors = [arg for arg in node.args if isinstance(arg, fx.Node)]
    sources = [arg.args[0] for arg in tensors if is_view(arg)]
    if not tensors or len(sources) != len(tensors) or set(tensors) != set(node.all_input_nodes):
        return Skip("not of views alone")
    if len(set(map(_shape, sources))) != 1 or len(set(map(_shape, tensors))) != 1:
        return Skip("its inputs are views of different shapes")
    replaced = iter(sources)
    args = [next(replaced) if isinstance(arg, fx.Node) else arg for arg in node.args]
    inner = build.call(cast(Any, node.target), *args, **node.kwargs)
    inner.meta["val"] = _value(inner)
    return build.call(aten.reshape.default, inner, tensors[0].args[1])


def _shape(node: Any) -> str:
    return str(tuple(node.meta["val"].shape))  # symbolic sizes, compared by their expressions


def _value(node: Any) -> Any:
    args = fx.map_arg(node.args, lambda n: n.meta["val"])
    return node.target(*args, **node.kwargs)
