"""A pass is a function of one node; the driver here does everything around it, once.

    @rule(torch.nn.functional.linear, example=Example(before=…, after=…))
    def insert_branch(build, node, graph):
        \"""linear(x, w, b)  ->  linear(x, w, b) + noble(x)\"""

The function answers with the node that takes the old one's place; with each old node and its new one, where it rewrites
several at once; with `Changed(node)`, where it changed the graph around the node; or with `Skip("reason")`. The driver
finds the matching nodes, sets the insertion point, rewires the users, carries `meta` over, removes what has become
dead, lints, recompiles and writes the history.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from noble_fx.passes.build import Build
from noble_fx.passes.dump import Note, dumped
from noble_fx.passes.example import Example
from noble_fx.passes.history import Changed, History, Skip, Step, operators
from noble_fx.passes.listing import Listings
from noble_fx.passes.match import ModelGraph

Answer = fx.Node | dict[fx.Node, fx.Node] | Changed | Skip


@dataclass(frozen=True)
class Rule:
    """One pass: what it looks at, the function that rewrites it, and the rewrite shown on a small model."""

    name: str
    targets: tuple[Any, ...]
    function: Callable[[Build, fx.Node, ModelGraph], Answer]
    where: Callable[[fx.Node], bool] | None = None
    example: Example | None = None

    @property
    def rewrite(self) -> str:
        """The rewrite in one line, "before  ->  after": the first of the function's docstring."""
        return (self.function.__doc__ or "").strip().partition("\n")[0]

    def matches(self, node: fx.Node, graph: ModelGraph) -> bool:
        """True for a call of one of the functions, or of a module of one of the classes, or for the output."""
        if node.op == "output":
            return "output" in self.targets
        if node.op == "call_module":
            module = graph.module(node.target)
            return any(isinstance(kind, type) and isinstance(module, kind) for kind in self.targets)
        if node.op != "call_function":
            return False
        return node.target in self.targets or (self.where is not None and self.where(node))


def rule(
    *targets: Any, where: Callable[[fx.Node], bool] | None = None, example: Example | None = None
) -> Callable[[Callable[..., Answer]], Rule]:
    """Make a function of a node a pass over every call of `targets` (functions, operators, module classes).

    `where` asks a node itself: for operators of libraries that may not be there, known by name alone, or by a tag.
    `example` is the rewrite on a small model; `passes.example.check` runs it.
    """
    return lambda function: Rule(function.__name__, targets, function, where, example)


@dataclass(frozen=True)
class Pipeline:
    """Passes in order, with `until_stable` again until none finds anything to do; `cleanup` runs once, after them."""

    rules: tuple[Rule, ...]
    cleanup: tuple[Rule, ...] = ()
    until_stable: bool = False
    name: str = "passes"

    def __iter__(self) -> Iterator[Rule]:
        return iter(self.rules + self.cleanup)

    def applies(self, graph_module: fx.GraphModule) -> bool:
        """True where one of the rules, the cleanup aside, would look at a node of this graph."""
        graph = ModelGraph(graph_module)
        return any(rule.matches(node, graph) for node in graph_module.graph.nodes for rule in self.rules)


def run_passes(graph_module: fx.GraphModule, passes: Pipeline | Sequence[Rule], listed: bool = False) -> History:
    """Run each pass over the whole graph, in order; returns the history. The graph is linted and recompiled.

    `listed` keeps the graph's lines in the history, as they were before and after every pass that changed them.

    Raises `RuntimeError` for a pipeline that is to run until it is stable and never is.
    """
    pipeline = passes if isinstance(passes, Pipeline) else Pipeline(tuple(passes))
    run = _until_stable if pipeline.until_stable else _once
    before = operators(graph_module)
    listings = Listings(graph_module.graph) if listed else None
    with dumped(graph_module, pipeline.name) as dump:

        def note(name: str, rewrite: str, steps: Sequence[Step]) -> None:
            dump(name, rewrite, steps)
            if listings is not None and not all(step.skipped for step in steps):
                listings.add(name, graph_module.graph)

        steps = run(graph_module, pipeline.rules, note) + _once(graph_module, pipeline.cleanup, note)
    graph_module.graph.lint()
    graph_module.recompile()
    return History(steps, before, listings.kept if listings is not None else ())


def _once(graph_module: fx.GraphModule, rules: Sequence[Rule], note: Note) -> list[Step]:
    history: list[Step] = []
    for rule in rules:
        graph = ModelGraph(graph_module)
        steps: list[Step] = []
        for node in list(graph_module.graph.nodes):
            if not node._erased and rule.matches(node, graph):
                steps += _apply(rule, node, graph)
        note(rule.name, rule.rewrite, steps)
        history += steps
    return history


def _until_stable(graph_module: fx.GraphModule, rules: Sequence[Rule], note: Note) -> list[Step]:
    """Every rewrite of every round, and what the last round, which rewrites nothing, leaves with which reason.

    A node that is moved or removed in each round cannot be so more often than there are nodes to move it past.
    """
    rewrites: list[Step] = []
    for _ in range(len(graph_module.graph.nodes) + 1):
        steps = _once(graph_module, rules, note)
        if all(step.skipped for step in steps):
            return rewrites + steps
        rewrites += [step for step in steps if not step.skipped]
    names = ", ".join(rule.name for rule in rules)
    raise RuntimeError(f"the passes {names} undo each other: the graph still changes after as many rounds as nodes")


def _apply(rule: Rule, node: fx.Node, graph: ModelGraph) -> list[Step]:
    answer = rule.function(Build(node.graph, node), node, graph)
    if isinstance(answer, Skip):
        return [Step(rule.name, node.name, _show(node), "", answer.reason)]
    if isinstance(answer, Changed):
        return [Step(rule.name, answer.node.name, _show(answer.node), _show(answer.node))]
    replacements = {node: answer} if isinstance(answer, fx.Node) else answer
    return [_replace(rule, old, new) for old, new in replacements.items()]


def _replace(rule: Rule, old: fx.Node, new: fx.Node) -> Step:
    name, before = old.name, _show(old)
    old.replace_all_uses_with(new)
    new.meta = {**old.meta, **new.meta}
    _erase(old.graph, old)
    return Step(rule.name, name, before, _show(new))


def _erase(graph: fx.Graph, node: fx.Node) -> None:
    """Remove a rewritten node, and those of its inputs that only it used."""
    inputs = node.all_input_nodes
    graph.erase_node(node)
    for source in inputs:
        if not source.users and source.op != "placeholder":
            _erase(graph, source)


def _show(node: fx.Node) -> str:
    target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    args = [str(arg) for arg in node.args if not isinstance(arg, list)]
    return f"{target}({', '.join(args[:3])}{', …' if len(args) > 3 else ''})"
