"""A graph of operators as plain picklable values, and back.

fx pickles a graph as Python code and traces that again; an exported graph holds symbolic sizes and operators of other
libraries that such a trace loses. Here each node is written down as it is; `meta` (fake tensors) is left out.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.fx.node import map_aggregate

from noble_fx.torch_versions import HigherOrderOperator, OpOverload


@dataclass(frozen=True)
class _NodeRef:
    name: str


@dataclass(frozen=True)
class _Operator:
    path: str  # "aten.linear.default"


@dataclass(frozen=True)
class _Function:
    module: str
    name: str


Written = list[tuple[str, str, Any, Any, Any]]


def write_graph(graph: fx.Graph) -> Written:
    """One tuple (op, name, target, args, kwargs) per node."""

    def value(arg: Any) -> Any:
        return _NodeRef(arg.name) if isinstance(arg, fx.Node) else arg

    def plain(args: Any) -> Any:
        # fx keeps lists and dicts of its own kinds, which pickle as what they look like
        out = map_aggregate(args, value)
        return _unfrozen(out)

    return [(n.op, n.name, _write_target(n.target), plain(n.args), plain(n.kwargs)) for n in graph.nodes]


def read_graph(written: Written) -> fx.Graph:
    """The graph of `write_graph`."""
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    for op, name, target, args, kwargs in written:
        args, kwargs = _resolved(args, nodes), _resolved(kwargs, nodes)
        nodes[name] = graph.create_node(op, _read_target(target), args, kwargs, name=name)
    return graph


def _unfrozen(value: Any) -> Any:
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return tuple(map(_unfrozen, value))
    if isinstance(value, list):
        return [_unfrozen(v) for v in value]
    if isinstance(value, dict):
        return {k: _unfrozen(v) for k, v in value.items()}
    if isinstance(value, slice):
        return slice(*map(_unfrozen, (value.start, value.stop, value.step)))
    return value


def _resolved(value: Any, nodes: dict[str, fx.Node]) -> Any:
    if isinstance(value, _NodeRef):
        return nodes[value.name]
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return tuple(_resolved(v, nodes) for v in value)
    if isinstance(value, list):
        return [_resolved(v, nodes) for v in value]
    if isinstance(value, dict):
        return {k: _resolved(v, nodes) for k, v in value.items()}
    if isinstance(value, slice):
        return slice(*(_resolved(v, nodes) for v in (value.start, value.stop, value.step)))
    return value


def _write_target(target: Any) -> Any:
    if isinstance(target, OpOverload):
        return _Operator(f"{target._schema.name.replace('::', '.')}.{target._overloadname}")
    if isinstance(target, HigherOrderOperator):
        return _Operator(f"higher_order.{target.name()}")
    if callable(target):
        return _Function(target.__module__, target.__name__)
    return target


def _read_target(target: Any) -> Any:
    if isinstance(target, _Operator):
        found: Any = torch.ops
        for part in target.path.split("."):
            found = getattr(found, part)
        return found
    return getattr(importlib.import_module(target.module), target.name) if isinstance(target, _Function) else target
