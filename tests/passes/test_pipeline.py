"""Graphs before and after the passes, their reasons, and the driver's promises."""

import operator

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

import noble_fx
from noble_fx.captures.fx import CapturedModel, run_as_graph
from noble_fx.passes.expose.expose_linear import expose_linear
from noble_fx.passes.fuse.fuse_branch import fuse_branch
from noble_fx.passes.history import Skip
from noble_fx.passes.insert.drop_branch import drop_branch
from noble_fx.passes.insert.insert_branch import insert_branch
from noble_fx.passes.pipeline import PIPELINES
from noble_fx.passes.rule import rule, run_passes
from noble_fx.schema import LINEAR
from tests.models import loud, tokens, transformed


class TwoLayers(nn.Module):
    """One chosen layer and one that is not."""

    def __init__(self):
        super().__init__()
        self.chosen, self.plain = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return self.plain(torch.relu(self.chosen(x)))


def before_passes(**settings) -> CapturedModel:
    """Augmented, but its graph still as it was traced."""
    torch.manual_seed(0)
    model = TwoLayers()
    noble_fx.transform(model, rank=2, select=["chosen"], capture="modules", seed=0, **settings)
    return loud(run_as_graph(model, fx.Tracer().trace(TwoLayers())))


def calls(graph_module: fx.GraphModule) -> list:
    return [n.target for n in graph_module.graph.nodes if n.op.startswith("call")]


def test_each_pass_in_turn():
    model, x = before_passes(), torch.randn(3, 8)
    expected = model(x)
    assert calls(model) == ["chosen", torch.relu, "plain"]
    run_passes(model, [expose_linear])
    assert calls(model) == [F.linear, torch.relu, "plain"]
    run_passes(model, [insert_branch])
    assert calls(model) == [F.linear, "chosen.noble", operator.add, torch.relu, "plain"]
    torch.testing.assert_close(model(x), expected)
    run_passes(model, [fuse_branch])
    assert calls(model) == [LINEAR, torch.relu, "plain"]
    torch.testing.assert_close(model(x), expected)
    run_passes(model, [drop_branch])
    assert calls(model) == [F.linear, torch.relu, "plain"]
    with noble_fx.disabled(model):
        assert torch.equal(model(x), model.plain(torch.relu(model.chosen(x))))


def test_the_pipeline_is_idempotent():
    model = before_passes()
    run_passes(model, PIPELINES["train"])
    once = str(model.graph)
    steps = run_passes(model, PIPELINES["train"])
    assert all(step.skipped for step in steps)
    assert str(model.graph) == once
    unfused = before_passes(fuse=False)
    run_passes(unfused, PIPELINES["train"])
    once = str(unfused.graph)
    steps = run_passes(unfused, [insert_branch])
    assert {step.skipped for step in steps} == {"has its branch already"}
    assert str(unfused.graph) == once


def test_an_unfused_branch_stays_and_the_history_says_why():
    model, x = before_passes(fuse=False), torch.randn(3, 8)
    expected = model(x)
    steps = run_passes(model, PIPELINES["train"])
    assert calls(model) == [F.linear, "chosen.noble", operator.add, torch.relu, "plain"]
    assert torch.equal(model(x), expected)
    assert [(step.rule, step.skipped) for step in steps] == [
        ("expose_linear", ""),
        ("insert_branch", ""),
        ("fuse_branch", "fuse=False"),
    ]


def test_passes_leave_other_linears_and_additions_alone():
    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 8))
            self.chosen = nn.Linear(8, 8)

        def forward(self, x):
            return F.linear(x, self.weight) + self.chosen(x)

    torch.manual_seed(0)
    model = noble_fx.transform(Other(), rank=2, capture="fx")
    assert calls(model) == [F.linear, LINEAR, operator.add]
    assert ("insert_branch", "not selected") in [(s.rule, s.skipped) for s in noble_fx.programs(model)[0].history]
    assert ("fuse_branch", "not a branch") in [(s.rule, s.skipped) for s in noble_fx.programs(model)[0].history]


def test_a_shared_layer_becomes_two_nodes_with_one_branch():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x):
            return self.layer(torch.relu(self.layer(x)))

    torch.manual_seed(0)
    model, x = loud(noble_fx.transform(Shared(), rank=2, capture="fx")), torch.randn(3, 8)
    assert calls(model) == [LINEAR, torch.relu, LINEAR]
    assert sum(1 for name, _ in model.named_parameters() if name.endswith("noble.up")) == 1
    layer = model.layer
    assert torch.equal(model(x), layer(torch.relu(layer(x))))


def test_meta_is_carried_over():
    model = before_passes()
    for node in model.graph.nodes:
        if node.target == "chosen":
            node.meta["val"] = "shape and dtype"
    run_passes(model, PIPELINES["train"])
    (fused,) = (node for node in model.graph.nodes if node.target is LINEAR)
    assert fused.meta["val"] == "shape and dtype"


def test_the_driver_writes_what_it_did_and_removes_what_is_dead():
    @rule(torch.relu)
    def swap_relu(build, node, target):
        """relu(x)  ->  gelu(x)"""
        return build.call(F.gelu, *node.args)

    @rule(nn.Linear)
    def refuse(build, node, target):
        """layer(x)  ->  layer(x)"""
        return Skip("no reason")

    model = fx.symbolic_trace(TwoLayers())
    steps = run_passes(model, [swap_relu, refuse])
    assert swap_relu.law == "relu(x)  ->  gelu(x)"
    assert [(s.rule, s.before, s.after, s.skipped) for s in steps] == [
        ("swap_relu", "relu(chosen)", "gelu(chosen)", ""),
        ("refuse", "chosen(x)", "", "no reason"),
        ("refuse", "plain(gelu)", "", "no reason"),
    ]
    assert calls(model) == ["chosen", F.gelu, "plain"]


@pytest.mark.parametrize("one", [one for rules in PIPELINES.values() for one in rules], ids=lambda one: one.name)
def test_every_pass_states_its_law(one):
    assert "->" in one.law


def test_the_history_of_a_transform():
    (program,) = noble_fx.programs(transformed("fx"))
    done = [step for step in program.history if not step.skipped]
    assert [sum(step.rule == name for step in done) for name in ("expose_linear", "insert_branch", "fuse_branch")] == [
        12,
        12,
        12,
    ]
    assert "noble_fx.linear.default" in str(program)
    assert program.graph_module(tokens()).shape == (2, 5, 20)
    (looking,) = noble_fx.programs(transformed("modules"))
    assert looking.history == program.history
