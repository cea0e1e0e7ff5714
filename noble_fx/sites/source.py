"""Which of its own parameters a class multiplies with, as its source shows: without a graph that is all there is.

    F.linear(x, self.weight.float())        y @ self.w2        w = self.w[e]; torch.bmm(x, w)

A parameter counts where it is a factor of a product, itself or seen through views, casts and slices.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from functools import cache

_PRODUCTS = {"linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "einsum", "grouped_mm", "_grouped_mm", "tensordot"}
_FACTORS_AT = {"linear": slice(0, 2), "addmm": slice(1, 3), "baddbmm": slice(1, 3)}  # beside a bias
_VIEWS = {
    "t", "T", "mT", "transpose", "permute", "view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "expand",
    "contiguous", "chunk", "split", "unbind", "float", "half", "bfloat16", "to", "type", "type_as", "detach", "data",
}  # fmt: skip
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@cache
def multiplied(cls: type) -> frozenset[str] | None:
    """Names of the attributes that the class's methods multiply with; None where there is no source to read."""
    names: set[str] = set()
    for base in cls.__mro__:
        if base is object or base.__module__.startswith("torch."):
            continue
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError, SyntaxError):
            return None
        for function in (node for node in ast.walk(tree) if isinstance(node, _FUNCTIONS)):
            names |= set(_factors(function))
    return frozenset(names)


def _factors(function: ast.AST) -> Iterator[str]:
    """The attributes of `self` that the function multiplies with."""
    local: dict[str, set[str]] = {}  # what a name stands for: views of attributes that were assigned to it
    for node in ast.walk(function):
        if isinstance(node, ast.Assign | ast.For | ast.comprehension):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            value = node.value if isinstance(node, ast.Assign) else node.iter
            for name in (part for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)):
                local.setdefault(name.id, set()).update(_views(value, local))
    for node in ast.walk(function):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult):
            yield from _views(node.left, local) | _views(node.right, local)
        elif isinstance(node, ast.Call) and _called(node) in _PRODUCTS:
            receiver = [node.func.value] if isinstance(node.func, ast.Attribute) else []
            factors = node.args[_FACTORS_AT.get(_called(node), slice(None))]
            for factor in [*receiver, *factors, *(keyword.value for keyword in node.keywords)]:
                yield from _views(factor, local)


def _views(node: ast.AST, local: dict[str, set[str]]) -> set[str]:
    """The attributes of `self` that an expression is a view, a cast or a slice of."""
    if isinstance(node, ast.Name):
        return local.get(node.id, set())
    if isinstance(node, ast.Attribute):
        of_self = isinstance(node.value, ast.Name) and node.value.id == "self"
        return {node.attr} if of_self else _views(node.value, local) if node.attr in _VIEWS else set()
    if isinstance(node, ast.Subscript):
        return _views(node.value, local)
    if isinstance(node, ast.Tuple | ast.List):
        return {name for part in node.elts for name in _views(part, local)}
    if isinstance(node, ast.Call) and _called(node) in ("zip", "enumerate"):
        return {name for part in node.args for name in _views(part, local)}
    if isinstance(node, ast.Call) and _called(node) in _VIEWS:
        method = isinstance(node.func, ast.Attribute) and _views(node.func.value, local)
        return method or (_views(node.args[0], local) if node.args else set())
    return set()


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
