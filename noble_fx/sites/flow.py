"""Roles read off a traced graph: those of `roles_from_graph.py`, and two that decide what is left out.

topk(x Wᵀ)                                   a router
softmax(x Wᵀ)[..., i] · y for several i      a router
the last product before the output           the head, of a model with repeated blocks: elsewhere it is a layer like any
"""

from __future__ import annotations

import operator
from collections.abc import Iterator

import torch
from torch import fx, nn
from torch.nn import functional as F

from noble_fx.layers.registry import describe
from noble_fx.sites.blocks import repeated_blocks
from noble_fx.sites.roles_from_graph import roles_from_graph

_SCORES = {"softmax", "sigmoid"}  # names of methods and functions alike
_SCORE_MODULES = (nn.Softmax, nn.Sigmoid)
_SHAPES = {"view", "reshape", "flatten", "float", "to", "type_as", "squeeze", "unsqueeze", "contiguous"}
_SUMS = {operator.add, torch.add, "add"}
_PRODUCTS = {operator.mul, torch.mul, "mul"}
_OTHER_PRODUCTS = {torch.matmul, operator.matmul, torch.bmm, torch.mm, torch.einsum, F.linear, "matmul"}


def flow_roles(model: nn.Module, graph: fx.Graph) -> dict[str, str]:
    """Role by module name for the layers of `graph`; names that the flow says nothing about are absent."""
    modules = {node: model.get_submodule(str(node.target)) for node in graph.nodes if node.op == "call_module"}
    maps = {node: str(node.target) for node, module in modules.items() if describe(module) is not None}
    roles = roles_from_graph(model, graph)
    roles |= {fqn: "router" for node, fqn in maps.items() if _routes(node, modules)}
    if repeated_blocks(model):
        roles |= {maps[node]: "head" for node in _last_maps(graph, maps)}
    return roles


def _routes(node: fx.Node, modules: dict[fx.Node, nn.Module]) -> bool:
    """True where a top-k follows, or scores whose pieces each weigh something."""
    todo, scored = [(user, False) for user in node.users], False
    pieces = 0
    while todo:
        user, scored = todo.pop()
        name = str(getattr(user.target, "__name__", user.target))
        if user.op != "call_module" and name == "topk":
            return True
        if isinstance(modules.get(user), _SCORE_MODULES) or (user.op != "call_module" and name in _SCORES):
            todo += [(after, True) for after in user.users]
        elif name in _SHAPES:
            todo += [(after, scored) for after in user.users]
        elif scored and user.target is operator.getitem:
            pieces += any(after.target in _PRODUCTS for after in user.users)
    return pieces > 1


def _last_maps(graph: fx.Graph, maps: dict[fx.Node, str]) -> Iterator[fx.Node]:
    """Per result of the graph: the one map that it is made of without another product or a sum on the way."""
    (output,) = (node for node in graph.nodes if node.op == "output")
    for result in output.all_input_nodes:
        found = _behind(result, maps, {})
        if found is not None and len(found) == 1:
            yield from found


def _behind(node: fx.Node, maps: dict[fx.Node, str], seen: dict[fx.Node, set[fx.Node] | None]) -> set[fx.Node] | None:
    """The maps that `node` is made of directly; None where something else is between: a residual sum, a product."""
    if node in maps:
        return {node}
    inputs = [before for before in node.all_input_nodes if before.op != "get_attr"]
    if node in seen or (node.target in _SUMS and len(inputs) > 1) or node.target in _OTHER_PRODUCTS:
        return None
    seen[node] = None
    found: set[fx.Node] = set()
    for before in inputs:
        behind = _behind(before, maps, seen)
        if behind is None:
            return None
        found |= behind
    return found
