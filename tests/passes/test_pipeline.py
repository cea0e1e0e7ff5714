"""The pipelines: that each pass shows what it does, and what they make of a model together."""

import operator
from pathlib import Path

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

import noble_fx
from noble_fx import passes
from noble_fx.captures.fx import CapturedModel, run_as_graph
from noble_fx.exporting import own_export
from noble_fx.passes.expose.expose_linear import expose_linear
from noble_fx.passes.fuse.fuse_branch import fuse_branch
from noble_fx.passes.insert.drop_branch import drop_branch
from noble_fx.passes.insert.insert_branch import insert_branch
from noble_fx.passes.pipeline import PIPELINES
from noble_fx.passes.rule import run_passes
from noble_fx.schema import JOINED_DOWN, JOINED_UP, LINEAR
from tests.models import loud, tokens, transformed

RULES = {rule.name: rule for pipeline in PIPELINES.values() for rule in pipeline}
X = torch.linspace(-2, 2, 24, dtype=torch.float64).reshape(3, 8)


@pytest.mark.parametrize("name", RULES)
def test_every_pass_shows_its_rewrite(name):
    assert "->" in RULES[name].rewrite
    assert RULES[name].example is not None


def test_every_pass_is_in_a_pipeline_and_in_a_file_of_its_name():
    folder = Path(passes.__file__).parent
    files = {path.stem for path in folder.glob("*/*.py") if path.stem != "__init__"}
    assert files == set(RULES)


# --- train and base --------------------------------------------------------------------------------------------------


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


def calls(graph_module) -> list:
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


@pytest.mark.parametrize("fuse", [True, False])
def test_a_second_run_changes_nothing(fuse):
    model = before_passes(fuse=fuse)
    run_passes(model, PIPELINES["train"])
    once = str(model.graph)
    steps = run_passes(model, PIPELINES["train"])
    assert all(step.skipped for step in steps)
    assert str(model.graph) == once


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


class Products(nn.Module):
    """A bare matrix multiplied with in each way that becomes a linear map, x [3, 8] -> [3, 8]."""

    def __init__(self):
        super().__init__()
        self.first, self.second = (nn.Parameter(torch.randn(8, 8)) for _ in range(2))
        self.third = nn.Parameter(torch.randn(24, 8))

    def forward(self, x):
        x = torch.addmm(x, torch.tanh(x @ self.first), self.second)
        q, k, v = F.linear(x, self.third).chunk(3, -1)
        return q * k + v


def test_products_of_an_exported_graph_become_one_operator_each():
    torch.manual_seed(0)
    model = noble_fx.transform(
        Products().double(), rank=2, select="all", capture="export", seed=0, example_inputs=(X[:2],)
    )
    loud(model)
    for program in noble_fx.programs(model):
        done = [step.rule for step in program.history if not step.skipped]
        assert [done.count(name) for name in ("expose_product", "insert_branch", "fuse_branch")] == [3, 3, 3]
        assert calls(program.graph_module).count(LINEAR) == 3
    noble = model.noble
    x = torch.tanh(X @ model.first + noble.first(X))
    x = X + x @ model.second + noble.second(x)
    q, k, v = (F.linear(x, model.third) + noble.third(x)).chunk(3, -1)
    torch.testing.assert_close(model(X), q * k + v, rtol=1e-12, atol=1e-12)


def test_the_history_of_a_transform():
    (program,) = noble_fx.programs(transformed("fx"))
    done = [step.rule for step in program.history if not step.skipped]
    assert [done.count(name) for name in ("expose_linear", "insert_branch", "fuse_branch")] == [12, 12, 12]
    assert "noble_fx.linear.default" in str(program)
    assert program.graph_module(tokens()).shape == (2, 5, 20)
    (looking,) = noble_fx.programs(transformed("modules"))
    assert looking.history == program.history


# --- export ----------------------------------------------------------------------------------------------------------


def exported(act: str, bias: bool, preset: str):
    """Two fused sites as torch.export gives them, and the model."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8, bias=bias), nn.ReLU(), nn.Linear(8, 8, bias=bias))
    settings = {"rank": 3, "act": act, "preset": preset, "select": "all", "capture": "modules", "seed": 0}
    model = loud(noble_fx.transform(model, **settings)).double().eval().requires_grad_(False)
    with own_export():
        program = torch.export.export(model, (torch.ones(3, 8, dtype=torch.float64),), strict=False)
    return model, program.module(check_guards=False)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("preset", ["paper", "reference"])
@pytest.mark.parametrize(
    ("pipeline", "act", "target"),
    [
        ("export", "cosnet", JOINED_UP),
        ("export_down", "cosnet", JOINED_DOWN),
        ("export_apart", "cosnet", LINEAR),
        ("export", "identity", F.linear),
        ("export_apart", "identity", F.linear),
    ],
)
def test_exports_say_the_same(pipeline, act, target, bias, preset):
    model, graph_module = exported(act, bias, preset)
    steps = run_passes(graph_module, PIPELINES[pipeline])
    assert calls(graph_module).count(target) == 2
    assert steps[-1].rule == "remove_dead"
    read = {str(node.target) for node in graph_module.graph.nodes if node.op == "get_attr"}
    assert set(dict(graph_module.named_parameters())) == read
    torch.testing.assert_close(graph_module(X), model(X), rtol=1e-12, atol=1e-12)
    assert all(step.skipped for step in run_passes(graph_module, PIPELINES[pipeline]))


class Shared(nn.Module):
    """Two layers that read one input."""

    def __init__(self):
        super().__init__()
        self.q, self.k = nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x):
        return self.q(x) * self.k(x)


def test_a_group_is_exported_as_its_sites():
    torch.manual_seed(0)
    model = loud(noble_fx.transform(Shared().double(), rank=2, select="all", capture="fx", seed=0)).eval()
    assert noble_fx.programs(model)[0].groups == (2,)
    expected = model(X)
    steps = run_passes(model, PIPELINES["export"])
    assert [step.rule for step in steps if not step.skipped][:2] == ["split_group", "split_group"]
    assert calls(model).count(JOINED_UP) == 2
    torch.testing.assert_close(model(X), expected, rtol=1e-12, atol=1e-12)
