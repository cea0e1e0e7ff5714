"""Runs a pass on its example: the test that every pass has, those of other libraries included."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from noble_fx.passes.example import Example, traced
from noble_fx.passes.rule import Rule, run_passes
from noble_fx.random_states import seed_cpu


def check_rewrite(rule: Rule, example: Example | None = None) -> None:
    """Run a pass on its example, or on another; raises `AssertionError` that says what does not hold.

    It rewrites `before` to `after`, node by node; in float64 the result computes what eager PyTorch does; a second run
    changes nothing; what was known of values, in `meta["val"]`, still is and is true.
    """
    example = example or rule.example
    _require("->" in rule.rewrite, f"the docstring of {rule.name} does not begin with its rewrite, before  ->  after")
    if example is None:
        raise AssertionError(f"{rule.name} has no example of its rewrite")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        seed_cpu(0)
        model = example.model().double()
        inputs = [torch.randn(shape, dtype=torch.float64) for shape in example.inputs]
        truth = (example.truth or example.before)(model, *inputs)
        graph_module = traced(example.before, model)
        _Record(graph_module).run(*inputs)

        steps = run_passes(graph_module, [rule])
        skipped = [step.skipped for step in steps]
        _require(any(not reason for reason in skipped), f"{rule.name} rewrites nothing in its example: {skipped}")
        wanted = listing(traced(example.after, graph_module).graph)
        rewritten = listing(graph_module.graph)
        _require(rewritten == wanted, f"{rule.name} makes\n{rewritten}\nwhere its example says\n{wanted}")
        torch.testing.assert_close(graph_module(*inputs), truth, rtol=1e-12, atol=1e-12)
        _check_values(rule, graph_module, inputs)

        again = run_passes(graph_module, [rule])
        _require(all(step.skipped for step in again), f"{rule.name} rewrites its own result: {again}")
        _require(listing(graph_module.graph) == rewritten, f"{rule.name} changes its own result and does not say so")


def listing(graph: fx.Graph) -> str:
    """The graph as text, from what its output reads; the same for graphs that differ in names and order alone."""
    names: dict[fx.Node, str] = {}
    lines: list[str] = []

    def name(node: fx.Node) -> str:
        if node.op in ("placeholder", "get_attr"):
            return str(node.target)
        if node not in names:
            args = fx.map_arg((node.args, node.kwargs), lambda arg: _Name(name(arg)))
            names[node] = f"%{len(names)}"
            lines.append(f"{names[node]} = {_target(node)} {args}")
        return names[node]

    name(next(node for node in graph.nodes if node.op == "output"))
    calls = [node for node in graph.nodes if node.op.startswith("call")]
    return "\n".join([*lines, *(f"unused: {_target(node)}" for node in calls if node not in names)])


class _Name(str):
    def __repr__(self) -> str:
        return str(self)


def _target(node: fx.Node) -> str:
    if isinstance(node.target, str):
        return f"{node.op} {node.target}"
    return f"{node.target.__module__}.{node.target.__name__}"


class _Record(fx.Interpreter):
    """Writes to `meta["val"]` what each node computes, on the meta device."""

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        n.meta["val"] = _on_meta(value)
        return value


def _check_values(rule: Rule, graph_module: fx.GraphModule, inputs: list[Tensor]) -> None:
    (output,) = (node for node in graph_module.graph.nodes if node.op == "output")
    before = {node: node.meta.get("val") for node in graph_module.graph.nodes}
    for node in output.all_input_nodes:
        _require(before[node] is not None, f"{rule.name} loses meta['val'] of {node.name}")
    _Record(graph_module).run(*inputs)
    for node, value in before.items():
        true = node.meta["val"]
        _require(value is None or _form(value) == _form(true), f"{node.name} of {rule.name} is {true}, not {value}")


def _on_meta(value: Any) -> Any:
    return pytree.tree_map_only(Tensor, lambda tensor: tensor.to("meta"), value)


def _form(value: Any) -> list[Any]:
    return [(x.shape, x.dtype) if isinstance(x, Tensor) else x for x in pytree.tree_leaves(value)]


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise AssertionError(message)
