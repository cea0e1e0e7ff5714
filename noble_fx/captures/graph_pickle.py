"""A graph of operators as plain picklable values, and back.

fx pickles a graph as Python code and traces that again, which loses names, symbolic sizes and operators of other
libraries. Here each node is written down as it is; `meta` (fake tensors) is left out.
"""

from __future__ import annotations

import importlib
import pickle
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.fx.node import map_aggregate

from noble_fx.ops.operands import Operands
from noble_fx.schema import LINEAR, LINEAR_GROUP
from noble_fx.torch_versions import HigherOrderOperator, OpOverload, qualified_name


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


def set_keys(graph: fx.Graph, model: nn.Module) -> None:
    """Let each fused node name σ as the branch does whose D it reads: another version may have made another key."""
    for node in graph.nodes:
        if node.op == "call_function" and node.target in (LINEAR, LINEAR_GROUP):
            down = Operands.of_node(node).sites[0].down
            branch: Any = model.get_submodule(str(down.target).rpartition(".")[0])
            node.args = (*node.args[:-1], branch.key)


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
    if not callable(target):
        return target
    module, _, name = qualified_name(target).rpartition(".")  # torch's own functions do not know their module
    written = _Function(module or "builtins", name)
    try:
        same = _read_target(written) is target
    except (ImportError, AttributeError):
        same = False
    if not same:
        raise pickle.PicklingError(f"the graph calls {target!r}, which no import finds again")
    return written


def _read_target(target: Any) -> Any:
    if isinstance(target, _Operator):
        return _member(torch.ops, target.path)
    if isinstance(target, _Function):
        return _member(_imported(target.module), target.name)
    return target


def _member(owner: Any, path: str) -> Any:
    for part in path.split("."):
        owner = getattr(owner, part)
    return owner


def _imported(path: str) -> Any:
    """A module by its name, or a class in one (`torch.Tensor`)."""
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError:
        module, _, name = path.rpartition(".")
        if not module:
            raise
        return getattr(_imported(module), name)
