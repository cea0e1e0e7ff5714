"""A pass is a function of one node; the driver here does everything around it, once.

    @rule(torch.nn.functional.linear)
    def insert_branch(build, node, program):
        \"""linear(x, w, b)  ->  linear(x, w, b) + noble(x)\"""

The function answers with the node that takes the old one's place, or with `Skip("reason")`; a rewrite of several nodes
at once with each old one and its new one. The driver finds the matching nodes, sets the insertion point, rewires the
users, carries `meta` over, removes what has become dead, lints, recompiles and writes the history.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx, nn

from noble_fx.branches.base import Branch
from noble_fx.branches.experts import BranchGroup
from noble_fx.passes.history import Skip, Step
from noble_fx.sites.products import Product, product_of
from noble_fx.sites.views import parameter_shapes

Answer = fx.Node | dict[fx.Node, fx.Node] | Skip


class Target:
    """What a rule may ask about the model while it looks at a node."""

    def __init__(self, graph_module: fx.GraphModule):
        self.graph_module = graph_module
        self._shapes = parameter_shapes(graph_module)

    def module(self, path: Any) -> nn.Module | None:
        """The module at `path`, or None where there is none."""
        try:
            return self.graph_module.get_submodule(path) if isinstance(path, str) else None
        except AttributeError:
            return None

    @cached_property
    def _owners(self) -> dict[int, str]:
        """Module path of the branch by the identity of the weight it belongs to."""
        found: dict[int, str] = {}
        for fqn, module in self.graph_module.named_modules():
            held = module._modules.get("noble")
            path = f"{fqn}.noble" if fqn else "noble"
            if isinstance(held, Branch):
                found.setdefault(id(module.weight), path)
            elif isinstance(held, BranchGroup):
                found |= {id(module._parameters[name]): f"{path}.{name}" for name in held}
        return found

    def branch_of(self, parameter: str) -> str | None:
        """Module path of the branch that belongs to a parameter, or None."""
        owner = self.module(parameter.rpartition(".")[0])
        weight = owner._parameters.get(parameter.rpartition(".")[2]) if owner is not None else None
        return self._owners.get(id(weight)) if weight is not None else None

    def shape_of(self, parameter: str) -> tuple[int, ...] | None:
        """The shape of a parameter, or None where there is none of that name."""
        return self._shapes(parameter)

    def constant(self, node: Any) -> Tensor | None:
        """The value of a node that is a parameter, or views and sums of parameters alone; else None."""
        if not isinstance(node, fx.Node):
            return None
        if node.op == "get_attr":
            value = self.attribute(str(node.target))
            return value.detach() if isinstance(value, Tensor) else None
        values = {one: self.constant(one) for one in node.all_input_nodes}
        if not _is_constant(node) or any(value is None for value in values.values()):
            return None
        with torch.no_grad():
            value = node.target(*fx.map_arg(node.args, values.__getitem__), **node.kwargs)  # type: ignore[operator]
        return value if isinstance(value, Tensor) else None

    def constants(self, *nodes: Any) -> list[Any] | Skip:
        """The values of several such nodes, None where there is no node; or why they are no constants."""
        values = [None if node is None else self.constant(node) for node in nodes]
        if any(value is None and node is not None for value, node in zip(values, nodes, strict=True)):
            return Skip("its matrices are computed in the graph, not constant")
        return values

    def attribute(self, path: str) -> Any:
        """What the graph reads at `path`, or None."""
        owner, _, name = path.rpartition(".")
        module = self.module(owner)
        return getattr(module, name, None) if module is not None else None

    def sole_reader(self, value: Any, reader: fx.Node) -> bool:
        """True where no other node needs the parameters behind `value`, under any name."""
        roots = {id(self.attribute(str(node.target))) for node in _attributes(value)}
        return all(
            _readers(node) <= {reader}
            for node in self.graph_module.graph.nodes
            if node.op == "get_attr" and id(self.attribute(str(node.target))) in roots
        )

    def product(self, node: fx.Node) -> tuple[Product, str] | Skip:
        """The product at `node` and the path of its weight's branch; or why there is nothing to do."""
        found = product_of(node, self.shape_of)
        path = self.branch_of(found.view.parameter) if isinstance(found, Product) else None
        if not isinstance(found, Product) or path is None:
            return Skip(found if isinstance(found, str) else "not selected")
        return Skip("has its branch already") if node.meta.get("noble") else (found, path)

    def branch(self, node: Any) -> Branch | None:
        """The branch that a `call_module` node runs, or None."""
        module = self.module(node.target) if isinstance(node, fx.Node) and node.op == "call_module" else None
        return module if isinstance(module, Branch) else None


def _attributes(value: Any) -> list[fx.Node]:
    """The parameter reads that a value is made of."""
    if not isinstance(value, fx.Node):
        return []
    return [value] if value.op == "get_attr" else [n for one in value.all_input_nodes for n in _attributes(one)]


def _readers(node: fx.Node) -> set[fx.Node]:
    """The nodes that use a parameter, seen through what only prepares it (a transpose of the weight)."""
    out: set[fx.Node] = set()
    for user in node.users:
        prepares = user.op == "call_function" and all(_is_constant(one) for one in user.all_input_nodes)
        out |= _readers(user) if prepares else {user}
    return out


def _is_constant(node: fx.Node) -> bool:
    if node.op == "get_attr":
        return True
    schema, tags = getattr(node.target, "_schema", None), getattr(node.target, "tags", ())
    if node.op != "call_function" or torch.Tag.nondeterministic_seeded in tags or (schema and schema.is_mutable):
        return False
    return bool(node.all_input_nodes) and all(map(_is_constant, node.all_input_nodes))


class Build:
    """Inserts nodes in front of the one that is being rewritten."""

    def __init__(self, graph: fx.Graph, node: fx.Node):
        self._graph, self._node = graph, node

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        """A call of a function or operator."""
        with self._graph.inserting_before(self._node):
            return self._graph.call_function(function, args, kwargs)

    def constant(self, name: str, value: Tensor, beside: Any) -> fx.Node:
        """A read of a new parameter that is put next to the one behind `beside`, under `name`."""
        owner = str(_attributes(beside)[0].target).rpartition(".")[0]
        graph_module = self._graph.owning_module
        assert graph_module is not None
        module = graph_module.get_submodule(owner)
        taken, free = set(module._parameters), name
        while free in taken:
            free += "_"
        module.register_parameter(free, nn.Parameter(value, requires_grad=False))
        return self.attribute(f"{owner}.{free}" if owner else free)

    def again(self) -> fx.Node:
        """The node that is being rewritten, once more, marked as one that has its branch."""
        copied = self.copy(self._node, lambda inner: inner)
        copied.meta["noble"] = True
        return copied

    def copy(self, node: fx.Node, inputs: Callable[[fx.Node], fx.Node]) -> fx.Node:
        """`node` once more, with what `inputs` gives for each node that it reads."""
        with self._graph.inserting_before(self._node):
            return self._graph.node_copy(node, inputs)

    def sees(self, node: fx.Node) -> bool:
        """True for a node that stands before the insertion point."""
        return node < self._node

    def method(self, name: str, *args: Any) -> fx.Node:
        """A call of a tensor's method."""
        with self._graph.inserting_before(self._node):
            return self._graph.call_method(name, args)

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
    predicates: tuple[Callable[[fx.Node], bool], ...] = ()

    @property
    def law(self) -> str:
        """The rewrite in one line, the first of the function's docstring."""
        return (self.rewrite.__doc__ or "").strip().splitlines()[0]

    def matches(self, node: fx.Node, target: Target) -> bool:
        """True for a call of one of the functions, or of a module of one of the classes, or for the output."""
        if node.op == "output":
            return "output" in self.targets
        if node.op == "call_module":
            module = target.module(node.target)
            return any(isinstance(kind, type) and isinstance(module, kind) for kind in self.targets)
        return node.op == "call_function" and (node.target in self.targets or any(ask(node) for ask in self.predicates))


def rule(*targets: Any, where: Callable[[fx.Node], bool] | None = None) -> Callable[[Callable[..., Answer]], Rule]:
    """Make a function of a node a pass over every call of `targets` (functions, operators, module classes).

    `where` asks a node itself: for operators of libraries that may not be there, known by name alone, or by a tag.
    """
    return lambda rewrite: Rule(rewrite.__name__, targets, rewrite, () if where is None else (where,))


def run_passes(graph_module: fx.GraphModule, rules: Sequence[Rule]) -> list[Step]:
    """Run each pass over the whole graph, in order; returns the history. The graph is linted and recompiled."""
    history: list[Step] = []
    for one in rules:
        target = Target(graph_module)
        for node in list(graph_module.graph.nodes):
            if not node._erased and one.matches(node, target):
                history += _apply(one, node, target)
    graph_module.graph.lint()
    graph_module.recompile()
    return history


def _apply(one: Rule, node: fx.Node, target: Target) -> list[Step]:
    answer = one.rewrite(Build(node.graph, node), node, target)
    if isinstance(answer, Skip):
        return [Step(one.name, node.name, _show(node), "", answer.reason)]
    if answer is node:  # it changed the graph around this node
        return [Step(one.name, node.name, _show(node), _show(node))]
    return [_replace(one, old, new) for old, new in ({node: answer} if isinstance(answer, fx.Node) else answer).items()]


def _replace(one: Rule, old: fx.Node, new: fx.Node) -> Step:
    name, before = old.name, _show(old)
    old.replace_all_uses_with(new)
    new.meta = {**old.meta, **new.meta}
    _erase(old.graph, old)
    return Step(one.name, name, before, _show(new))


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
