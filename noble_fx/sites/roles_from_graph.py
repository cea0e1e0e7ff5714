"""What a linear map does, read from where its result goes in a traced graph.

its result reaches the query, key or value of an attention          attention.q / .k / .v / .qkv
its input is the result of an attention                             attention.out
its result, through an activation, feeds another linear map         ffn.in, and that one ffn.out
… multiplied on the way by a linear map of the same x               the activated one is ffn.gate
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator

import torch
from torch import fx, nn
from torch.nn import functional as F

_SHAPE_METHODS = {
    "view", "reshape", "transpose", "permute", "contiguous", "split", "chunk", "unbind", "unflatten", "flatten", "to",
    "unsqueeze", "squeeze", "float", "type_as", "t", "mT",
}  # fmt: skip
_SHAPE_FUNCTIONS = {
    operator.getitem, torch.transpose, torch.permute, torch.reshape, torch.split, torch.chunk, torch.unbind,
    torch.flatten, torch.unsqueeze, torch.squeeze,
}  # fmt: skip
_ACTIVATIONS = {
    F.gelu, F.relu, F.silu, F.leaky_relu, F.elu, F.mish, F.sigmoid, F.tanh, torch.relu, torch.sigmoid, torch.tanh,
}  # fmt: skip
_ACTIVATION_MODULES = (nn.GELU, nn.ReLU, nn.SiLU, nn.LeakyReLU, nn.ELU, nn.Mish, nn.Sigmoid, nn.Tanh)
_PRODUCTS = {operator.mul, torch.mul}
_MATMULS = {torch.matmul, operator.matmul, torch.bmm}
_SOFTMAX = {F.softmax, torch.softmax}


def roles_from_graph(model: nn.Module, graph: fx.Graph) -> dict[str, str]:
    """Role by module name for the `nn.Linear` calls of `graph`; names that the flow says nothing about are absent."""
    linears = {n: str(n.target) for n in graph.nodes if isinstance(_module(model, n), nn.Linear)}
    roles: dict[str, str] = {}
    for node, fqn in linears.items():
        parts = {part for end, via in _forward(node, _is_reshape) for part in _attention_part(end, via)}
        if parts:
            roles[fqn] = f"attention.{'qkv' if len(parts) > 1 else parts.pop()}"
        elif any(_is_attention_result(start) for start in _sources(node.args[0] if node.args else None)):
            roles[fqn] = "attention.out"
    for node, fqn in linears.items():
        if fqn not in roles:
            _ffn_roles(model, node, fqn, linears, roles)
    return roles


def _ffn_roles(model: nn.Module, node: fx.Node, fqn: str, linears: dict[fx.Node, str], roles: dict[str, str]) -> None:
    def passes(n: fx.Node) -> bool:
        return _is_reshape(n) or _is_activation(model, n) or n.target in _PRODUCTS or _is_dropout(model, n)

    ends = [(end, via) for end, via in _forward(node, passes) if end in linears]
    activated = any(_is_activation(model, n) for _, via in ends for n in via)
    product = next((n for _, via in ends for n in via if n.target in _PRODUCTS), None)
    if not ends or not (activated or product):
        return
    for end, _ in ends:
        roles.setdefault(linears[end], "ffn.out")
    before_product = [n for _, via in ends for n in via[: via.index(product)]] if product in _flat(ends) else []
    roles[fqn] = "ffn.gate" if any(_is_activation(model, n) for n in before_product) else "ffn.in"


def _flat(ends: list[tuple[fx.Node, list[fx.Node]]]) -> list[fx.Node]:
    return [n for _, via in ends for n in via]


def _forward(node: fx.Node, passes: Callable[[fx.Node], bool]) -> Iterator[tuple[fx.Node, list[fx.Node]]]:
    """Every node where the result of `node` ends up after nodes that `passes`, with the way there (itself last)."""
    todo: list[tuple[fx.Node, list[fx.Node]]] = [(user, [node]) for user in node.users]
    seen: set[fx.Node] = set()
    while todo:
        user, via = todo.pop()
        if user in seen:
            continue
        if passes(user):
            seen.add(user)
            todo += [(after, [*via, user]) for after in user.users]
        else:
            yield user, via


def _attention_part(end: fx.Node, via: list[fx.Node]) -> set[str]:
    """Which inputs of an attention at `end` the way leads to."""
    last = via[-1]
    if end.target is F.scaled_dot_product_attention:
        named = [end.kwargs.get(name) for name in ("query", "key", "value")]
        given = [*end.args[:3], *named[len(end.args[:3]) :]]
        return {part for part, arg in zip("qkv", given, strict=False) if arg is last}
    if end.target in _MATMULS:
        if _is_softmax_way(end.args[0]):
            return {"v"} if end.args[1] is last else set()
        if any(_is_softmax(n) for n, _ in _forward(end, lambda n: not _is_softmax(n) and n.target not in _MATMULS)):
            return {part for part, arg in zip("qk", end.args, strict=False) if arg is last}
    return set()


def _is_attention_result(node: fx.Node) -> bool:
    if node.target is F.scaled_dot_product_attention:
        return True
    return node.target in _MATMULS and _is_softmax_way(node.args[0])


def _sources(node: object) -> Iterator[fx.Node]:
    """`node` and what it is a reshaped view of."""
    while isinstance(node, fx.Node):
        yield node
        node = node.args[0] if _is_reshape(node) and node.args else None


def _is_softmax_way(node: object) -> bool:
    while isinstance(node, fx.Node):
        if _is_softmax(node):
            return True
        node = node.args[0] if node.args and node.op in ("call_module", "call_method") else None
    return False


def _is_softmax(node: fx.Node) -> bool:
    return node.target in _SOFTMAX or (node.op == "call_method" and node.target == "softmax")


def _is_reshape(node: fx.Node) -> bool:
    return node.target in (_SHAPE_METHODS if node.op == "call_method" else _SHAPE_FUNCTIONS)


def _is_activation(model: nn.Module, node: fx.Node) -> bool:
    return node.target in _ACTIVATIONS or isinstance(_module(model, node), _ACTIVATION_MODULES)


def _is_dropout(model: nn.Module, node: fx.Node) -> bool:
    return node.target is F.dropout or isinstance(_module(model, node), nn.Dropout)


def _module(model: nn.Module, node: fx.Node) -> nn.Module | None:
    return model.get_submodule(str(node.target)) if node.op == "call_module" else None
