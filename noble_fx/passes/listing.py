"""A graph as lines to read, one a node; a parameter stands where it is read, under the path that it is read from.

    getitem = linear_group(norm, [self.blocks[0].q_proj.weight, …], …)[0]      block "blocks.0"

It is for looking: names of outputs, operators and paths are the graph's own, but nothing reads it back as Python.
"""

from __future__ import annotations

import functools
import itertools
import operator
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import fx

from noble_fx.torch_versions import HOMES_OF_FUNCTIONAL

LIMIT = 10_000  # nodes of a graph whose lines are kept at every pass: more would be felt, and nobody reads them
_INFIX = {
    operator.add: "+",
    operator.sub: "-",
    operator.mul: "*",
    operator.truediv: "/",
    operator.floordiv: "//",
    operator.matmul: "@",
    operator.pow: "**",
}
_MODULES = {**dict.fromkeys(HOMES_OF_FUNCTIONAL, "F."), "torch": "torch.", "math": "math."}
_LIFTED = "L_self_"  # how Dynamo's names of a module's own parameters begin
_CHECKS = ("_assert", "_are_functorch_transforms_active")
_INPUTS = 12  # of a graph, named in its first line


class Line(NamedTuple):
    """One line of a listing."""

    node: str
    text: str
    block: str = ""  # the outermost numbered module that the node is of: "model.layers.0"


class Listing(NamedTuple):
    """A graph as it was after a pass, "" for as it was captured."""

    after: str
    lines: tuple[Line, ...]


class Listings:
    """Collects the listings of a graph while passes run over it; those of a large graph are not kept."""

    def __init__(self, graph: fx.Graph):
        self.kept: list[Listing] = []
        self._known: dict[Line, Line] = {}  # most lines stay as they are, and are kept once
        self.add("", graph)

    def add(self, after: str, graph: fx.Graph) -> None:
        """Keep the graph as it is now."""
        if len(graph.nodes) <= LIMIT:
            self.kept.append(Listing(after, tuple(self._known.setdefault(line, line) for line in lines_of(graph))))


def lines_of(graph: fx.Graph) -> tuple[Line, ...]:
    """The listing of a graph."""
    lines, block = [Line("forward", _signature(graph), "")], ""
    for node in graph.nodes:
        if node.op in ("placeholder", "get_attr") or _is_check(node):
            continue
        block = "" if node.op == "output" else block_of(node, block)
        lines.append(Line(node.name, text_of(node), block))
    return tuple(lines)


def text_of(node: fx.Node) -> str:
    """One node as a line of Python."""
    args = [_arg(arg) for arg in node.args]
    named = [f"{name}={_arg(arg)}" for name, arg in node.kwargs.items()]
    if node.op == "output":
        return f"return {', '.join(args)}"
    if node.op == "placeholder":
        return node.name
    if node.op == "call_method":
        called = f"{args[0]}.{node.target}({', '.join([*args[1:], *named])})" if args else f"{node.target}()"
    elif node.target in _INFIX and len(args) == 2 and not named:
        called = f"{args[0]} {_INFIX[node.target]} {args[1]}"
    elif node.target is operator.getitem and len(args) == 2:
        called = f"{args[0]}[{args[1]}]"
    else:
        called = f"{target_name(node)}({', '.join([*args, *named])})"
    return f"{node.name} = {called}"


def target_name(node: fx.Node) -> str:
    """What a node calls, in short: `aten.mul`, `F.linear`, `self.layers[0].norm`, `transpose`."""
    target: Any = node.target
    if isinstance(target, str):
        return path_text(target) if node.op in ("call_module", "get_attr") else target
    if packet := getattr(target, "overloadpacket", None):
        return str(packet).replace("noble_fx.", "")
    name = str(getattr(target, "__name__", target))
    return _MODULES.get(getattr(target, "__module__", None) or "", "") + name


def path_text(path: str) -> str:
    """`layers.0.q_proj` as Python reads it: `self.layers[0].q_proj`."""
    return "self" + "".join(f"[{part}]" if part.isdecimal() else f".{part}" for part in path.split("."))


def module_path(node: fx.Node) -> str:
    """The module that a node is of: where it was traced, or whose parameters it reads; "" where nothing tells."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    if stack and isinstance(stack[-1], tuple) and not str(stack[-1][0]).startswith("_empty"):
        return _plain_path(str(stack[-1][0]))
    if node.op == "call_module":
        return str(node.target)
    reads = [path for source in node.all_input_nodes if (path := read_path(source))]
    return reads[0].rpartition(".")[0] if reads else ""


def read_path(node: fx.Node) -> str:
    """The path of the parameter that a node reads, or ""."""
    if node.op == "get_attr":
        return str(node.target)
    if node.op == "placeholder" and str(node.target).startswith(_LIFTED):
        path = re.sub(r"_?(?:modules|parameters|buffers)_", ".", str(node.target).removeprefix("L_self"))
        path = re.sub(r"noble_bound_places_\d+_0_", "noble.", path)
        return re.sub(r"noble_bound_places_\d+_\d+_", "noble.act.", path).strip("._")
    return ""


@functools.lru_cache(maxsize=4096)
def block_name(path: str) -> str:
    """A module's path up to its first number, "" where it has none."""
    parts = path.split(".")
    first = next((at for at, part in enumerate(parts) if part.isdecimal()), None)
    return "" if first is None else ".".join(parts[: first + 1])


def block_of(node: fx.Node, otherwise: str = "") -> str:
    """The outermost numbered module that a node is of; `otherwise` where nothing tells which module it is of."""
    path = module_path(node)
    return block_name(path) if path else otherwise


@functools.lru_cache(maxsize=4096)
def _plain_path(path: str) -> str:
    """Dynamo's `L['self'].blocks.0` or `L['self']._modules['a']` as a dotted path."""
    path = path.removeprefix("L['self']").replace("._modules", "")
    return re.sub(r"\[['\"]?(\w+)['\"]?\]", r".\1", path).strip(".")


def _signature(graph: fx.Graph) -> str:
    inputs = [node.name for node in graph.nodes if node.op == "placeholder" and not read_path(node)]
    more = f", … {len(inputs) - _INPUTS} more" if len(inputs) > _INPUTS else ""
    return f"def forward({', '.join(inputs[:_INPUTS])}{more}):"


def _is_check(node: fx.Node) -> bool:
    """True for what torch.export and Dynamo leave behind of questions that were answered: it computes nothing."""
    return not node.users and any(word in target_name(node) for word in _CHECKS)


def _items(args: Iterable[Any]) -> str:
    """Arguments in a list; the tensors of one σ are as many as it has, and stand as one."""
    runs = itertools.groupby(args, _sigma)
    return ", ".join(part for sigma, run in runs for part in ([f"*{path_text(sigma)}"] if sigma else map(_arg, run)))


def _sigma(arg: Any) -> str:
    """The path of the σ that an argument is a tensor of, or ""."""
    found = re.match(r"(.*\.noble\.act)\.", read_path(arg)) if isinstance(arg, fx.Node) else None
    return found[1] if found else ""


def _arg(arg: Any) -> str:
    if isinstance(arg, fx.Node):
        path = read_path(arg)
        return path_text(path) if path else arg.name
    if isinstance(arg, list | tuple):
        inside = _items(arg)
        if isinstance(arg, list):
            return f"[{inside}]"
        return f"({inside},)" if len(arg) == 1 else f"({inside})"
    if isinstance(arg, dict):
        return "{" + ", ".join(f"{key!r}: {_arg(value)}" for key, value in arg.items()) + "}"
    if isinstance(arg, slice):
        parts = ["" if part is None else _arg(part) for part in (arg.start, arg.stop, arg.step)]
        return ":".join(parts if arg.step is not None else parts[:2])
    return repr(arg)
