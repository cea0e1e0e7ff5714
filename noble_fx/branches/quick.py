"""A graph of σ as a function that costs little to call: on a CPU, small layers spend their time between operators.

A traced graph calls operators by their overloads, asks for sizes, transposes twice and keeps a dimension to take it off
again. Here the same operators are called by torch's own functions, which is half the price, and what changes nothing
is gone. Numbers are the same to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

_ATEN = torch.ops.aten
# Functions that take what the overload takes, by place.
_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    getattr(_ATEN, name).default: getattr(torch, name)
    for name in (
        "cos",
        "sin",
        "neg",
        "exp",
        "tanh",
        "sigmoid",
        "erf",
        "relu",
        "abs",
        "sqrt",
        "rsqrt",
        "mm",
        "addmm",
        "t",
    )
} | {getattr(_ATEN, name).Tensor: getattr(torch, name) for name in ("mul", "add", "sub", "div")}
_FUNCTIONS[_ATEN.sum.dim_IntList] = torch.sum


def quick(graph_module: fx.GraphModule) -> Callable[..., Any]:
    """The function of a graph, with the same results to the bit."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(graph_module.graph, {}))
    for node in list(graph.nodes):
        _without_kept_dimension(node)
        _without_two_transposes(node)
    graph.eliminate_dead_code()  # the sizes that nobody asks for any more
    for node in graph.nodes:
        if node.target in _FUNCTIONS and isinstance(node.args[0], fx.Node) and not node.kwargs:
            node.target = _FUNCTIONS[node.target]
    graph.lint()
    made = fx.GraphModule(torch.nn.Module(), graph)
    return made.forward


def _without_kept_dimension(node: fx.Node) -> None:
    """[1, n] as [n], of a sum over the first dimension that kept it: the sum that does not."""
    if node.target is not _ATEN.view.default or len(node.args[1]) != 1:  # type: ignore[arg-type]
        return
    total = node.args[0]
    if not isinstance(total, fx.Node) or total.target is not _ATEN.sum.dim_IntList or total.kwargs:
        return
    if tuple(total.args[1:]) == ([0], True) and len(total.users) == 1 and total.args[0].meta["val"].dim() == 2:  # type: ignore[union-attr]
        total.args = (total.args[0], [0])
        node.replace_all_uses_with(total)


def _without_two_transposes(node: fx.Node) -> None:
    before = node.args[0] if node.target is _ATEN.t.default else None
    if isinstance(before, fx.Node) and before.target is _ATEN.t.default:
        node.replace_all_uses_with(before.args[0])  # type: ignore[arg-type]
