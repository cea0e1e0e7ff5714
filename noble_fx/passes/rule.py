"""A pass is a function of one node; the driver here does everything around it, once.

    @rule(torch.nn.functional.linear)
    def insert_branch(build, node, program):
        \"""linear(x, w, b)  ->  linear(x, w, b) + noble(x)\"""

The function answers with the node that takes the old one's place, or with `Skip("reason")`. The driver finds the
matching nodes, sets the insertion point, rewires the users, carries `meta` over, removes what has become dead, lints,
recompiles and writes the history.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from noble_fx.branch import Augmented, NobleBranch
from noble_fx.program import Skip, Step

Answer = fx.Node | Skip


class Target:
    """What a rule may ask about the model while it looks at a node."""

    def __init__(self, graph_module: fx.GraphModule):
        self.graph_module = graph_module

    def module(self, path: Any) -> nn.Module | None:
        """The module at `path`, or None where there is none."""
        try:
            return self.graph_module.get_submodule(path) if isinstance(path, str) else None
        except AttributeError:
            return None

    def layer_of(self, linear: fx.Node) -> tuple[str, Augmented] | None:
        """The augmented layer whose weight a functional linear reads, with its name."""
        weight = linear.args[1]
        while isinstance(weight, fx.Node) and weight.op != "get_attr":
            weight = weight.args[0] if weight.args else None
        if not isinstance(weight, fx.Node):
            return None
        fqn = str(weight.target).rpartition(".")[0]
        layer = self.module(fqn)
        return (fqn, layer) if isinstance(layer, Augmented) else None

    def branch(self, node: Any) -> NobleBranch | None:
        """The branch that a `call_module` node runs, or None."""
        module = self.module(node.target) if isinstance(node, fx.Node) and node.op == "call_module" else None
        return module if isinstance(module, NobleBranch) else None


class Build:
    """Inserts nodes in front of the one that is being rewritten."""

    def __init__(self, graph: fx.Graph, node: fx.Node):
        self._graph, self._node = graph, node

    def call(self, function: Callable[..., Any], *args: Any) -> fx.Node:
        """A call of a function or operator."""
        with self._graph.inserting_before(self._node):
            return self._graph.call_function(function, args)

    def module(self, path: str, *args: Any) -> fx.Node:
        """A call of the submodule at `path`."""
        with self._graph.inserting_before(self._node):
            return self._graph.call_module(path, args)

    def attribute(self, path: str) -> fx.Node:
        """A read of the parameter or buffer at `path`."""
        with self._graph.inserting_before(self._node):
            return self._graph.get_attr(path)


@dataclass(frozen=True)
class Rule:
    """One pass: what it looks at, and the function that rewrites it."""

    name: str
    targets: tuple[Any, ...]
    rewrite: Callable[[Build, fx.Node, Target], Answer]

    @property
    def law(self) -> str:
        """The rewrite in one line, the first of the function's docstring."""
        return (self.rewrite.__doc__ or "").strip().splitlines()[0]

    def matches(self, node: fx.Node, target: Target) -> bool:
        """True for a call of one of the functions, or of a module of one of the classes."""
        if node.op == "call_module":
            module = target.module(node.target)
            return any(isinstance(kind, type) and isinstance(module, kind) for kind in self.targets)
        return node.op == "call_function" and any(node.target is one for one in self.targets)


def rule(*targets: Any) -> Callable[[Callable[..., Answer]], Rule]:
    """Make a function of a node a pass over every call of `targets` (functions, operators, module classes)."""
    return lambda rewrite: Rule(rewrite.__name__, targets, rewrite)


def run_passes(graph_module: fx.GraphModule, rules: Sequence[Rule]) -> list[Step]:
    """Run each pass over the whole graph, in order; returns the history. The graph is linted and recompiled."""
    history: list[Step] = []
    for one in rules:
        target = Target(graph_module)
        for node in list(graph_module.graph.nodes):
            if one.matches(node, target):
                history.append(_apply(one, node, target))
    graph_module.graph.lint()
    graph_module.recompile()
    return history


def _apply(one: Rule, node: fx.Node, target: Target) -> Step:
    graph, name, before = node.graph, node.name, _show(node)
    answer = one.rewrite(Build(graph, node), node, target)
    if isinstance(answer, Skip):
        return Step(one.name, name, before, "", answer.reason)
    node.replace_all_uses_with(answer)
    answer.meta = {**node.meta, **answer.meta}
    _erase(graph, node)
    return Step(one.name, name, before, _show(answer))


def _erase(graph: fx.Graph, node: fx.Node) -> None:
    """Remove a rewritten node, and those of its inputs that only it used."""
    inputs = node.all_input_nodes
    graph.erase_node(node)
    for one in inputs:
        if not one.users and one.op != "placeholder":
            _erase(graph, one)


def _show(node: fx.Node) -> str:
    target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    shown = [str(arg) for arg in node.args if not isinstance(arg, list)]
    return f"{target}({', '.join(shown[:3])}{', …' if len(shown) > 3 else ''})"
