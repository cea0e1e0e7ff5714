"""Sites that read one input become one call, and nothing else changes."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import noble_fx
from noble_fx.passes.check import check_rewrite
from noble_fx.passes.fuse.share_input import share_input
from noble_fx.passes.pipeline import PIPELINES
from noble_fx.passes.rule import run_passes
from noble_fx.schema import LINEAR, LINEAR_GROUP
from tests.models import compiled_programs, loud, transformed
from tests.samples import long
from tests.zoo import ZOO, Functional, features, ids


class Attention(nn.Module):
    """q, k and v of one input, with fewer k and v as in grouped-query attention, x [.., 8] -> [.., 8]."""

    def __init__(self, bias: bool = True):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, n, bias=bias) for n in (8, 4, 4))
        self.out = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (2, 4))
        k, v = self.k(x).unsqueeze(-2), self.v(x).unsqueeze(-2)
        return self.out((torch.tanh(q * k) * v).flatten(-2))


def attention(capture: str = "fx", **settings: object) -> nn.Module:
    torch.manual_seed(0)
    return loud(noble_fx.transform(Attention(), rank=2, capture=capture, seed=0, **settings))


def same_gradients(model: nn.Module, other: nn.Module) -> None:
    for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=name) if p.grad is not None else None
        assert (p.grad is None) == (q.grad is None), name


def calls(graph: fx.Graph) -> list:
    return [node.target for node in graph.nodes if node.op == "call_function"]


def reasons(graph_module: fx.GraphModule) -> list[str]:
    return [step.skipped for step in run_passes(graph_module, [share_input])]


def test_rewrite():
    check_rewrite(share_input)


# --- before and after ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
def test_q_k_and_v_are_one_call(bias):
    torch.manual_seed(0)
    plain = loud(noble_fx.transform(Attention(bias), rank=2, capture="modules", seed=0)).double()
    grouped = noble_fx.transform(Attention(bias), rank=2, capture="fx", seed=0).double()
    grouped.load_state_dict(plain.state_dict())
    (group,) = (node for node in grouped.graph.nodes if node.target is LINEAR_GROUP)
    assert [len(arg) for arg in group.args[1:7]] == [3, 3 if bias else 0, 3, 0, 3, 15]
    assert calls(grouped.graph).count(operator.getitem) == 3
    assert calls(grouped.graph).count(LINEAR) == 1
    x = torch.randn(5, 8, dtype=torch.float64)
    for model in (plain, grouped):
        model(x).square().sum().backward()
    torch.testing.assert_close(grouped(x), plain(x))
    same_gradients(grouped, plain)


def test_the_history_names_each_site():
    (program,) = noble_fx.programs(attention())
    steps = [step for step in program.history if step.rule == "share_input"]
    assert [step.after.split("(")[0] for step in steps] == ["getitem"] * 3 + [""]
    assert steps[-1].skipped == "reads x alone"
    assert program.groups == (3,)
    text = str(noble_fx.explain(program.graph_module))
    assert "fused: 4 sites, each one noble_fx::linear or one of a noble_fx::linear_group" in text
    assert "grouped: 3 sites that read the same input as another, 1 calls of noble_fx::linear_group" in text


def test_a_second_run_changes_nothing():
    grouped = transformed("fx")
    before = str(grouped.graph)
    assert all(step.skipped for step in run_passes(grouped, PIPELINES["train"]))
    assert str(grouped.graph) == before


def test_the_way_back_is_the_base_model_bit_for_bit():
    torch.manual_seed(0)
    x, plain = torch.randn(5, 8), Attention()
    base, grouped = plain(x), noble_fx.transform(plain, rank=2, capture="fx")
    loud(grouped)
    with noble_fx.disabled(grouped):
        assert torch.equal(grouped(x), base)
        assert LINEAR_GROUP not in calls(grouped.graph)
        assert calls(grouped.graph).count(F.linear) == 4
    assert LINEAR_GROUP in calls(grouped.graph)
    noble_fx.remove(grouped)
    assert torch.equal(grouped(x), base)


def test_what_is_known_of_a_value_stays_known():
    graph, site, _ = sites_of_one_input()
    first, second = site(), site(out_features=5)
    graph_module = finish(graph, first, second)
    run_passes(graph_module, [share_input])
    values = {node.name: node.meta["val"] for node in graph_module.graph.nodes if "val" in node.meta}
    assert [v.shape for v in values["linear_group_default"]] == [(3, 6), (3, 5)]
    assert [values[name].shape for name in ("getitem", "getitem_1")] == [(3, 6), (3, 5)]


@pytest.mark.parametrize("bias", [True, False])
def test_folded_sites_are_grouped_with_their_biases_of_u(bias):
    torch.manual_seed(0)
    model = loud(noble_fx.transform(Attention(bias), rank=2, act="silu_shift", capture="fx", seed=0)).eval()
    folded, x = noble_fx.fold(model), torch.randn(5, 8)
    assert noble_fx.programs(folded)[0].groups == (3,)
    torch.testing.assert_close(folded(x), model(x))


def test_parts_of_one_weight_are_grouped_with_their_rows():
    grouped = noble_fx.transform(
        Functional(), rank=2, select="all", capture="export", seed=0, example_kwargs=features()
    )
    programs = noble_fx.programs(loud(grouped))
    assert [program.groups for program in programs] == [(3,), (3,)]
    ungrouped = copy.deepcopy(grouped)
    for mode, module in ungrouped.noble_modules.items():
        module.graph = copy.deepcopy(ungrouped.noble_graphs.base[mode])
        run_passes(module, [rule for rule in PIPELINES["train"] if rule is not share_input])
        assert calls(module.graph).count(LINEAR_GROUP) == 0
    for model in (grouped, ungrouped):
        model(**features()).square().sum().backward()
    same_gradients(grouped, ungrouped)


# --- refusals --------------------------------------------------------------------------------------------------------


def sites_of_one_input() -> tuple[fx.Graph, Callable, fx.Node]:
    """A graph, a function that adds a site to it, and x."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    count = iter(range(100))

    def parameter(*shape: int) -> fx.Node:
        node = graph.placeholder(f"p{next(count)}")
        node.meta["val"] = torch.empty(shape, device="meta")
        return node

    def site(of=x, rank=2, out_features=6, key="σ", bias=True, down_bias=True, weight=None) -> fx.Node:
        vectors = [parameter(n) if present else None for n, present in ((out_features, bias), (rank, down_bias))]
        node = graph.call_function(
            LINEAR,
            (of, weight or parameter(out_features, 8), vectors[0], parameter(rank, 8), vectors[1],
             parameter(out_features, rank), [], key),
        )  # fmt: skip
        node.meta["val"] = torch.empty(3, out_features, device="meta")
        return node

    return graph, site, x


def finish(graph: fx.Graph, *results: fx.Node) -> fx.GraphModule:
    """Placeholders come first in a graph, as Dynamo writes it."""
    for node in reversed([node for node in graph.nodes if node.op == "placeholder"]):
        next(iter(graph.nodes)).prepend(node)
    graph.output(results)
    return fx.GraphModule(nn.Module(), graph)


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"rank": 3}, "another rank: 2 here, 3 there"),
        ({"key": "τ"}, "another σ there"),
        ({"bias": False}, "a bias here, none there"),
        ({"down_bias": False}, "a bias of D here, none there"),
    ],
)
def test_sites_that_differ_stay_alone(other, reason):
    graph, site, _ = sites_of_one_input()
    graph_module = finish(graph, site(), site(**other))
    first, second = reasons(graph_module)
    assert first == reason
    assert second  # the same difference, from the other side


def test_those_that_agree_are_grouped_past_one_that_differs():
    graph, site, _ = sites_of_one_input()
    graph_module = finish(graph, site(), site(rank=3), site())
    assert reasons(graph_module) == ["", "", "another rank: 3 here, 2 there"]


def test_a_site_of_another_input_in_between_ends_a_group():
    graph, site, x = sites_of_one_input()
    first = site()
    between = site(of=graph.call_function(torch.tanh, (x,)))
    graph_module = finish(graph, first, between, site())
    assert reasons(graph_module) == ["another site lies in between", "reads x alone", "another site lies in between"]


def test_a_group_is_not_widened():
    graph, site, _ = sites_of_one_input()
    graph_module = finish(graph, site(), site())
    run_passes(graph_module, [share_input])
    group = next(node for node in graph.nodes if node.target is LINEAR_GROUP)
    with graph.inserting_after(group):
        x, *fields, _, key = group.args
        graph.call_function(LINEAR, (x, *(field[0] for field in fields[:5]), [], key))
    assert reasons(graph_module) == ["the others are a group already"]


def test_arguments_may_be_given_by_name():
    graph, site, _ = sites_of_one_input()
    first, second = site(), site(out_features=5)
    names = [argument.name for argument in LINEAR._schema.arguments]
    second.kwargs = dict(zip(names[2:], second.args[2:], strict=True))
    second.args = second.args[:2]
    own = (second.kwargs["bias"], second.kwargs["up"])
    assert reasons(finish(graph, first, second)) == ["", ""]
    (group,) = (node for node in graph.nodes if node.target is LINEAR_GROUP)
    assert (group.args[2][1], group.args[5][1]) == own


def test_parameters_computed_later_cannot_be_read_earlier():
    graph, site, _ = sites_of_one_input()
    first = site()
    graph_module = finish(graph, first, site(weight=graph.call_function(torch.tanh, (first,))))
    assert reasons(graph_module)[0] == "the parameters of another are computed after it"


def test_an_unknown_rank_is_a_reason():
    graph, site, _ = sites_of_one_input()
    graph_module = finish(graph, site(), site())
    for node in graph_module.graph.nodes:
        node.meta.clear()
    assert reasons(graph_module)[0] == "the rank of a branch is not known here"


class ChangesItsInput(Attention):
    """x is another one when v reads it."""

    def forward(self, x: Tensor) -> Tensor:
        x = x * 1
        q, k = self.q(x).unflatten(-1, (2, 4)), self.k(x).unsqueeze(-2)
        x.mul_(2)
        return self.out((q * k * self.v(x).unsqueeze(-2)).flatten(-2))


class WithoutGradient(Attention):
    """k is a constant of the loss."""

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (2, 4))
        with torch.no_grad():
            k = self.k(x).unsqueeze(-2)
        return self.out((q * k * self.v(x).unsqueeze(-2)).flatten(-2))


@pytest.mark.parametrize("kind", [ChangesItsInput, WithoutGradient])
def test_nothing_moves_across_an_effect(kind):
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = loud(noble_fx.transform(kind(), rank=2, capture="modules", seed=0))
    twin, x = copy.deepcopy(model), torch.randn(5, 8)
    training = kind is WithoutGradient  # an input that is changed afterwards is lost to backward, in any layer
    compiled = torch.compile(model, backend="noble_fx", options={"then": "aot_eager"}, fullgraph=True)
    with torch.set_grad_enabled(training):
        y, truth = compiled(x), twin(x)
    torch.testing.assert_close(y, truth)
    if training:
        y.square().sum().backward()
        truth.square().sum().backward()
        same_gradients(model, twin)
        assert model.k.weight.grad is None
    skipped = [step.skipped for step in compiled_programs(model)[0].history]
    assert any("in between may change what it reads, or how" in reason for reason in skipped)


# --- real models under torch.compile ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "groups"), [long("Llama", (3, 2)), ("BERT", (3,))])
def test_loss_and_gradients_are_those_of_ungrouped_sites(name, groups):
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = next(entry for entry in ZOO if entry.name == name).build().eval()
    model = loud(noble_fx.transform(model, rank=4, select="all", capture="modules", seed=0)).double()
    twin = copy.deepcopy(model)
    compiled = torch.compile(model, backend="noble_fx", options={"then": "aot_eager"}, fullgraph=True, dynamic=True)
    for length in (6, 9):
        loss, truth = (run(ids(length)).logits.square().mean() for run in (compiled, twin))
        torch.testing.assert_close(loss, truth)
        loss.backward()
        truth.backward()
    same_gradients(model, twin)
    assert [program.groups for program in compiled_programs(model)] == [groups]  # one graph, of any length


@pytest.mark.long  # half a minute of a C++ compiler; `tests/ops/test_linear_group.py` has a group without a model
def test_inductor_trains_a_grouped_graph():
    torch._dynamo.reset()
    model, x = attention("modules"), torch.randn(5, 8)
    twin = copy.deepcopy(model)
    compiled = torch.compile(model, backend="noble_fx")
    for run in (compiled, twin):
        run(x).square().mean().backward()
    assert compiled_programs(model)[0].groups == (3,)
    same_gradients(model, twin)
