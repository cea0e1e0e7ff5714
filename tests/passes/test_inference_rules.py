"""Each rewrite for inference: what it makes, what it refuses, and that the numbers stay."""

import operator

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

import noble_fx
from noble_fx.passes.inference.fold_branch import fold_branch
from noble_fx.passes.inference.join_down import join_down
from noble_fx.passes.inference.join_up import join_up
from noble_fx.passes.inference.merge_branch import merge_branch
from noble_fx.passes.inference.merge_view import merge_view
from noble_fx.passes.inference.remove_dead import remove_dead
from noble_fx.passes.inference.sink_view import sink_view
from noble_fx.passes.rule import run_passes
from noble_fx.schema import JOINED_DOWN, JOINED_UP, LINEAR
from tests.models import loud

aten = torch.ops.aten


class Two(nn.Module):
    """Two layers; `tied` gives them one weight."""

    def __init__(self, bias=True, tied=False):
        super().__init__()
        self.one, self.other = nn.Linear(8, 8, bias=bias), nn.Linear(8, 8, bias=bias)
        if tied:
            self.other.weight = self.one.weight

    def forward(self, x):
        return self.other(torch.relu(self.one(x)))


def branched(act="cosnet", preset="reference", **settings) -> nn.Module:
    torch.manual_seed(0)
    select = ["one", "other"] if settings.get("tied") else "all"
    config = noble_fx.NobleConfig(rank=3, act=act, preset=preset, select=select, capture="modules", seed=0)
    return loud(noble_fx.transform(Two(**settings), config=config)).double()


def graph_of(model: nn.Module) -> fx.GraphModule:
    with torch.no_grad():
        program = torch.export.export(
            model.eval().requires_grad_(False), (torch.ones(3, 8, dtype=torch.float64),), strict=False
        )
        return program.module(check_guards=False)


def calls(graph_module: fx.GraphModule) -> list:
    return [node.target for node in graph_module.graph.nodes if node.op == "call_function"]


JOINS = [pytest.param(join, id=join.name) for join in (join_down, join_up)]
X = torch.linspace(-2, 2, 40, dtype=torch.float64).reshape(5, 8)[:3]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("preset", ["paper", "reference"])
@pytest.mark.parametrize(
    ("join", "operator_", "shape", "gone"),
    [(join_down, JOINED_DOWN, (11, 8), "down"), (join_up, JOINED_UP, (8, 11), "up")],
    ids=["down", "up"],
)
def test_joined(join, operator_, shape, gone, bias, preset):
    model = branched(bias=bias, preset=preset)
    graph, expected = graph_of(model), model(X)
    steps = run_passes(graph, [join, remove_dead])
    assert [step.rule for step in steps if not step.skipped] == [join.name, join.name, "remove_dead"]
    assert calls(graph).count(operator_) == 2
    assert LINEAR not in calls(graph)
    torch.testing.assert_close(graph(X), expected, rtol=1e-12, atol=1e-12)
    names = dict(graph.named_parameters())
    assert names["one.joined_weight"].shape == shape
    assert "one.weight" not in names
    assert f"one.noble.{gone}" not in names
    assert ("one.joined_bias" in names) == (gone == "down" and (bias or preset == "reference"))


@pytest.mark.parametrize("join", JOINS)
def test_what_is_read_elsewhere_is_not_joined(join):
    model = branched(tied=True)
    graph, expected = graph_of(model), model(X)
    steps = run_passes(graph, [join])
    assert {step.skipped for step in steps} == {"another product reads the same matrix, which would be stored twice"}
    torch.testing.assert_close(graph(X), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("width", "dtype", "joined"), [(1020, "float32", 1), (1021, "float32", 0), (1021, "float16", 1)]
)
def test_rows_of_four_kibibytes_are_not_made(width, dtype, joined):
    layer = nn.Sequential(nn.Linear(width, 4))
    model = loud(noble_fx.transform(layer, rank=3, capture="modules", seed=0)).to(getattr(torch, dtype))
    x = torch.ones(2, width, dtype=getattr(torch, dtype))
    graph = torch.export.export(model.requires_grad_(False), (x,)).module(check_guards=False)
    steps = run_passes(graph, [join_up])
    assert calls(graph).count(JOINED_UP) == joined
    assert joined or steps[0].skipped.startswith("rows of 1024 numbers, a multiple of 4 KiB")


@pytest.mark.parametrize("join", JOINS)
def test_a_weight_that_the_graph_computes_is_not_joined(join):
    model = branched()
    graph = graph_of(model)
    node = next(n for n in graph.graph.nodes if n.target is LINEAR)
    with graph.graph.inserting_before(node):
        x = node.args[0]
        scaled = graph.graph.call_function(torch.mul, (node.args[1], graph.graph.call_function(torch.max, (x,))))
    node.args = (x, scaled, *node.args[2:])
    graph.graph.eliminate_dead_code()
    steps = run_passes(graph, [join])
    assert steps[0].skipped == "its matrices are computed in the graph, not constant"


@pytest.mark.parametrize("join", JOINS)
def test_a_transposed_weight_is_joined_through_its_view(join):
    model = branched()
    graph, expected = graph_of(model), model(X)
    graph.one.weight = nn.Parameter(graph.one.weight.t().contiguous(), requires_grad=False)
    node = next(n for n in graph.graph.nodes if n.target is LINEAR)
    with graph.graph.inserting_before(node):
        turned = graph.graph.call_function(aten.t.default, (node.args[1],))
    node.args = (node.args[0], turned, *node.args[2:])
    steps = run_passes(graph, [join])
    assert not any(step.skipped for step in steps)
    torch.testing.assert_close(graph(X), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_branch_is_merged(bias):
    model = branched(act="identity", bias=bias)
    graph, expected = graph_of(model), model(X)
    run_passes(graph, [merge_branch, remove_dead])
    assert calls(graph).count(F.linear) == 2
    assert not any("noble" in name for name, _ in graph.named_parameters())
    torch.testing.assert_close(graph(X), expected, rtol=1e-12, atol=1e-12)
    other = graph_of(branched())
    assert {step.skipped for step in run_passes(other, [merge_branch])} == {"its branch is not linear"}
    tied = graph_of(branched(act="identity", tied=True))
    assert all("another product" in step.skipped for step in run_passes(tied, [merge_branch]))


def test_fold_needs_a_folded_branch():
    graph = graph_of(branched())
    assert {step.skipped for step in run_passes(graph, [fold_branch])} == {"its branch is not folded"}
    folded = noble_fx.fold(noble_fx.transform(Two(), rank=3, capture="fx"))
    assert {step.skipped for step in run_passes(folded, [fold_branch])} == {"folded already"}


def test_nothing_dead_is_nothing_done():
    graph = graph_of(branched())
    before = str(graph.graph)
    run_passes(graph, [remove_dead])
    assert [step.skipped for step in run_passes(graph, [remove_dead])] == ["nothing is dead"]
    assert str(graph.graph) == before


class Views(nn.Module):
    def forward(self, x, y):
        a, b = x.reshape(2, 3, 4), y.reshape(2, 3, 4)
        return F.gelu(a).reshape(-1, 4) * 2, (a * b).reshape(6, 4), (a + b[:, :1]).reshape(6, 4)


def views() -> tuple[fx.GraphModule, tuple[torch.Tensor, ...]]:
    x, y = torch.randn(6, 4), torch.randn(6, 4)
    dims = {0: torch.export.Dim.STATIC}
    program = torch.export.export(Views(), (x, y), dynamic_shapes=(dims, dims), strict=False)
    return program.run_decompositions({}).graph_module, (x, y)


def test_views_sink_and_vanish():
    graph, inputs = views()
    expected = graph(*inputs)
    for _ in range(2):
        run_passes(graph, [sink_view, merge_view])
    graph.graph.eliminate_dead_code()
    graph.recompile()
    for found, wanted in zip(graph(*inputs), expected, strict=True):
        torch.testing.assert_close(found, wanted)
    left = [n for n in graph.graph.nodes if n.target in (aten.view.default, aten.reshape.default)]
    assert len(left) == 3  # those of a + b[:, :1], whose shapes differ
    steps = run_passes(graph, [sink_view, merge_view])
    assert all(step.skipped for step in steps)
    assert {"not of views alone"} <= {step.skipped for step in steps}


def test_a_predicate_looks_at_calls_alone():
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output(graph.call_function(operator.add, (x, 1)))
    assert not any(sink_view.matches(node, None) for node in graph.nodes)
