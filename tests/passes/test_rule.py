"""The driver: what it looks at, what it does around a rule, and what it writes down."""

import operator

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

from noble_fx.passes.history import Changed, Skip, Step
from noble_fx.passes.match import ModelGraph
from noble_fx.passes.rule import Pipeline, rule, run_passes


class TwoLayers(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))


@rule(torch.relu)
def swap_relu(build, node, graph):
    """relu(x)  ->  gelu(x)

    The second paragraph is not the rewrite.
    """
    return build.call(F.gelu, *node.args)


@rule(nn.Linear)
def refuse(build, node, graph):
    """layer(x)  ->  layer(x)"""
    return Skip("no reason")


def two_layers() -> fx.GraphModule:
    return fx.symbolic_trace(TwoLayers())


def calls(graph_module: fx.GraphModule) -> list:
    return [node.target for node in graph_module.graph.nodes if node.op.startswith("call")]


# --- what a rule looks at --------------------------------------------------------------------------------------------


def matched(rule, graph_module: fx.GraphModule) -> list[str]:
    graph = ModelGraph(graph_module)
    return [node.name for node in graph_module.graph.nodes if rule.matches(node, graph)]


@pytest.mark.parametrize(
    ("targets", "where", "nodes"),
    [
        ((torch.relu,), None, ["relu"]),
        ((F.gelu,), None, []),
        ((nn.Linear,), None, ["first", "second"]),
        ((nn.Module,), None, ["first", "second"]),
        ((nn.Conv2d,), None, []),
        (("output",), None, ["output"]),
        ((torch.relu, nn.Linear), None, ["first", "relu", "second"]),
        ((), lambda node: True, ["relu"]),  # a predicate looks at calls of functions alone
        ((), lambda node: False, []),
    ],
)
def test_what_a_rule_looks_at(targets, where, nodes):
    watching = rule(*targets, where=where)(lambda build, node, graph: Skip(""))
    assert matched(watching, two_layers()) == nodes


def test_a_module_that_is_not_there_is_no_match():
    graph_module = two_layers()
    del graph_module.first
    assert matched(refuse, graph_module) == ["second"]


def test_a_rule_has_the_name_and_the_first_line_of_its_function():
    assert swap_relu.name == "swap_relu"
    assert swap_relu.rewrite == "relu(x)  ->  gelu(x)"


# --- what the driver does --------------------------------------------------------------------------------------------


def test_the_history_and_what_has_become_dead():
    graph_module = two_layers()
    steps = run_passes(graph_module, [swap_relu, refuse])
    assert list(steps) == [
        Step("swap_relu", "relu", "relu(first)", "gelu(first)"),
        Step("refuse", "first", "first(x)", "", "no reason"),
        Step("refuse", "second", "second(gelu)", "", "no reason"),
    ]
    assert calls(graph_module) == ["first", F.gelu, "second"]


def test_the_code_runs_what_the_graph_says():
    graph_module, x = two_layers(), torch.randn(3, 8)
    expected = graph_module.second(F.gelu(graph_module.first(x)))
    run_passes(graph_module, [swap_relu])
    assert torch.equal(graph_module(x), expected)


def test_inputs_that_only_the_old_node_used_go_and_placeholders_stay():
    @rule(torch.relu)
    def drop_both(build, node, graph):
        """relu(layer(x))  ->  y"""
        return next(n for n in graph.graph_module.graph.nodes if n.name == "y")

    class Inputs(TwoLayers):
        def forward(self, x, y):
            return self.second(torch.relu(self.first(x)))

    graph_module = fx.symbolic_trace(Inputs())
    run_passes(graph_module, [drop_both])
    assert [node.name for node in graph_module.graph.nodes] == ["x", "y", "second", "output"]


def test_meta_is_carried_over_and_the_rule_has_the_last_word():
    @rule(torch.relu)
    def noted(build, node, graph):
        """relu(x)  ->  gelu(x)"""
        new = build.call(F.gelu, *node.args)
        new.meta["b"] = "new"
        return new

    graph_module = two_layers()
    (relu,) = (node for node in graph_module.graph.nodes if node.target is torch.relu)
    relu.meta = {"a": "old", "b": "old"}
    run_passes(graph_module, [noted])
    (gelu,) = (node for node in graph_module.graph.nodes if node.target is F.gelu)
    assert gelu.meta == {"a": "old", "b": "new"}


def test_several_nodes_at_once_are_a_step_each():
    @rule(nn.Linear)
    def swap_layers(build, node, graph):
        """first, second  ->  relu, relu"""
        layers = [n for n in graph.graph_module.graph.nodes if n.op == "call_module"]
        return {layer: build.method("relu", next(iter(graph.graph_module.graph.nodes))) for layer in layers}

    class Apart(TwoLayers):
        def forward(self, x):
            return self.first(x) + self.second(x)

    graph_module = fx.symbolic_trace(Apart())
    steps = run_passes(graph_module, [swap_layers])
    assert [(step.node, step.after) for step in steps] == [("first", "relu(x)"), ("second", "relu(x)")]
    assert calls(graph_module) == ["relu", "relu", operator.add]


def test_a_change_around_a_node_is_a_step_of_that_node():
    @rule(torch.relu)
    def rename(build, node, graph):
        """layer(x)  ->  other(x), before a relu"""
        node.args[0].target = "second"
        return Changed(node)

    graph_module = two_layers()
    assert run_passes(graph_module, [rename]) == (Step("rename", "relu", "relu(first)", "relu(first)"),)
    assert calls(graph_module) == ["second", torch.relu, "second"]


def test_a_rule_does_not_see_what_it_made_in_the_same_run():
    @rule(torch.relu)
    def again(build, node, graph):
        """relu(x)  ->  relu(relu(x))"""
        return build.call(torch.relu, build.call(torch.relu, *node.args))

    graph_module = two_layers()
    run_passes(graph_module, [again])
    assert calls(graph_module).count(torch.relu) == 2


def test_a_graph_that_a_rule_broke_is_found():
    @rule(torch.relu)
    def too_late(build, node, graph):
        """relu(x)  ->  relu(what comes after it)"""
        node.args = (next(iter(node.users)),)
        return Changed(node)

    with pytest.raises(RuntimeError, match="before"):
        run_passes(two_layers(), [too_late])


def test_calls_are_shown_short():
    @rule(torch.addcmul)
    def look(build, node, graph):
        """addcmul(…)  ->  addcmul(…)"""
        return Skip("seen")

    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output(graph.call_function(torch.addcmul, (x, x, [x], x, 2)))
    (step,) = run_passes(fx.GraphModule(nn.Module(), graph), [look])
    assert step.before == "addcmul(x, x, x, …)"


# --- pipelines -------------------------------------------------------------------------------------------------------


@rule(operator.add)
def count_down(build, node, graph):
    """x + n  ->  x + (n - 1)"""
    x, n = node.args
    return build.call(operator.add, x, n - 1) if n else Skip("zero")


@rule("output")
def close(build, node, graph):
    """output  ->  output"""
    return Skip("closed")


def sum_of(n: int) -> fx.GraphModule:
    """x + n after enough other nodes that a run until it is stable has its rounds."""
    graph = fx.Graph()
    value = graph.placeholder("x")
    for _ in range(4):
        value = graph.call_function(torch.neg, (value,))
    graph.output(graph.call_function(operator.add, (value, n)))
    return fx.GraphModule(nn.Module(), graph)


def test_once():
    steps = run_passes(sum_of(3), Pipeline((count_down,)))
    assert [step.after for step in steps] == ["add(neg_3, 2)"]


def test_until_stable():
    steps = run_passes(sum_of(3), Pipeline((count_down, refuse), until_stable=True))
    afters = [(step.after, step.skipped) for step in steps]
    assert afters == [("add(neg_3, 2)", ""), ("add(neg_3, 1)", ""), ("add(neg_3, 0)", ""), ("", "zero")]


def test_a_pipeline_that_never_is_stable_ends():
    @rule(operator.add)
    def swap(build, node, graph):
        """x + y  ->  y + x"""
        return build.call(operator.add, *reversed(node.args))

    with pytest.raises(RuntimeError, match="the passes swap, close undo each other"):
        run_passes(sum_of(1), Pipeline((swap, close), until_stable=True))


def test_the_cleanup_runs_once_after_the_rules():
    steps = run_passes(sum_of(2), Pipeline((count_down,), cleanup=(close,), until_stable=True))
    assert [step.rule for step in steps] == ["count_down"] * 3 + ["close"]


def test_a_pipeline_applies_where_its_rules_look_at_something():
    assert Pipeline((refuse, count_down), cleanup=(close,)).applies(sum_of(1))
    assert not Pipeline((refuse,), cleanup=(close,)).applies(sum_of(1))


def test_a_pipeline_is_its_rules_and_then_its_cleanup():
    assert list(Pipeline((refuse, count_down), cleanup=(close,))) == [refuse, count_down, close]
