"""What a node may do besides computing its result: change a tensor in place, or the mode in which others run."""

from __future__ import annotations

import inspect
import operator
from typing import Any

from torch import fx

from noble_fx.passes.match import ModelGraph
from noble_fx.torch_versions import HigherOrderOperator, OpOverload, OpOverloadPacket

_IN_PLACE = {
    operator.setitem, operator.delitem, operator.iadd, operator.isub, operator.imul, operator.itruediv,
    operator.ifloordiv, operator.imod, operator.ipow, operator.imatmul, operator.iand, operator.ior, operator.ixor,
    operator.ilshift, operator.irshift,
}  # fmt: skip
_ONLY_CHECK = ("_assert", "sym_constrain")  # impure to fx, which must not remove them, but they change nothing
_KNOWN = ("torch", "operator", "_operator", "math", "builtins")  # other libraries' functions may do anything


def has_effect(node: fx.Node, graph: ModelGraph) -> bool:
    """True unless it is clear that neighbours of `node` may be moved across it."""
    if node.op == "call_method":
        name = str(node.target)
        return (name.endswith("_") and not name.endswith("__")) or name in ("__setitem__", "__iadd__", "__imul__")
    if node.op == "call_module":
        module = graph.module(node.target)
        return module is None or any(getattr(part, "inplace", False) for part in module.modules())
    return node.op == "call_function" and _function_has_effect(node)


def _function_has_effect(node: fx.Node) -> bool:
    function: Any = node.target
    if isinstance(function, HigherOrderOperator) or function in _IN_PLACE:
        return True
    name = str(getattr(function, "__name__", function))
    if isinstance(function, OpOverload | OpOverloadPacket):
        overloads = [function] if isinstance(function, OpOverload) else _overloads(function)
        mutable = any(overload._schema.is_mutable for overload in overloads)
    else:
        library = (getattr(function, "__module__", None) or "torch").split(".")[0]
        mutable = library not in _KNOWN or name.endswith("_") or _asks_for_change(node)
    return mutable or (node.is_impure(impure_random=False) and not name.startswith(_ONLY_CHECK))


def _overloads(packet: OpOverloadPacket) -> list[OpOverload]:
    return [getattr(packet, name) for name in packet.overloads()]


def _asks_for_change(node: fx.Node) -> bool:
    """`inplace=True` or `out=…`, by name or by position."""
    arguments: dict[str, Any] = dict(node.kwargs)
    if inspect.isfunction(node.target):
        arguments = inspect.signature(node.target).bind(*node.args, **node.kwargs).arguments
    return bool(arguments.get("inplace")) or arguments.get("out") is not None
