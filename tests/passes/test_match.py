"""What a rule may ask about the model behind a graph."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from noble_fx.passes.example import EXPERTS, IN, OUT, layer, layers, parameter, traced
from noble_fx.passes.history import Skip
from noble_fx.passes.match import ModelGraph, is_constant, parameter_reads

aten = torch.ops.aten


def graph_of(function, model: nn.Module) -> ModelGraph:
    return ModelGraph(traced(function, model))


def node_of(graph: ModelGraph, target):
    return next(node for node in graph.graph_module.graph.nodes if node.target == target)


# --- modules and parameters ------------------------------------------------------------------------------------------


def test_modules_and_attributes_by_their_paths():
    graph = graph_of(lambda m, x: m.q(x), layers())
    assert graph.module("q.noble") is graph.graph_module.q.noble
    assert graph.module("") is graph.graph_module
    assert graph.module("q.nothing") is None
    assert graph.module(torch.relu) is None
    assert graph.attribute("q.noble.up") is graph.graph_module.q.noble.up
    assert graph.attribute("nothing.up") is None
    assert graph.attribute("q.nothing") is None


def test_shapes_are_those_of_parameters_alone():
    graph = graph_of(lambda m, x: m.q(x), layers())
    assert graph.shape_of("q.weight") == (OUT, IN)
    assert graph.shape_of("q.in_features") is None
    assert graph.shape_of("k.nothing") is None
    assert graph.shape_of("nothing.weight") is None


# --- branches --------------------------------------------------------------------------------------------------------


def test_the_branch_of_a_layer_s_weight():
    graph = graph_of(lambda m, x: m.q(x), layers())
    assert graph.branch_of("q.weight") == "q.noble"
    assert graph.branch_of("q.bias") is None
    assert graph.branch_of("nothing.weight") is None


def test_the_branch_of_a_bare_parameter():
    assert graph_of(lambda m, x: x, parameter(OUT, IN)()).branch_of("w") == "noble.w"


def test_a_tied_weight_has_one_branch_whatever_its_name():
    model = layers()
    model.k.weight = model.q.weight
    graph = graph_of(lambda m, x: x, model)
    assert graph.branch_of("k.weight") == graph.branch_of("q.weight") == "q.noble"


def test_the_branch_that_a_call_runs():
    graph = graph_of(lambda m, x: F.linear(x, m.weight) + m.noble(x), layer())
    assert graph.branch(node_of(graph, "noble")) is graph.graph_module.noble
    assert graph.branch(node_of(graph, F.linear)) is None
    assert graph.branch(1.0) is None
    whole = graph_of(lambda m, x: m.q(x), layers())
    assert whole.branch(node_of(whole, "q")) is None


def test_experts_are_a_group_of_branches_and_none_themselves():
    graph = graph_of(lambda m, x: m.noble.w(x), parameter(EXPERTS, IN, OUT, experts=EXPERTS)())
    assert graph.branch(node_of(graph, "noble.w")) is None


# --- products --------------------------------------------------------------------------------------------------------


def test_a_product_and_its_branch():
    graph = graph_of(lambda m, x: F.linear(x, m.weight, m.bias), layer())
    product, path = graph.product(node_of(graph, F.linear))
    assert path == "noble"
    assert (product.x.name, product.weight.target, product.bias.target) == ("x", "weight", "bias")


@pytest.mark.parametrize(
    ("function", "target", "reason"),
    [
        (lambda m, x: F.linear(x, m.q.noble.down), F.linear, "not selected"),
        (lambda m, x: torch.relu(x), torch.relu, "not selected"),
        (lambda m, x: aten.mm.default(m.q.weight, x), aten.mm.default, "it multiplies from the left"),
    ],
)
def test_where_there_is_nothing_to_do(function, target, reason):
    graph = graph_of(function, layers())
    answer = graph.product(node_of(graph, target))
    assert isinstance(answer, Skip)
    assert reason in answer.reason


def test_a_product_that_has_its_branch():
    graph = graph_of(lambda m, x: F.linear(x, m.weight), layer())
    node = node_of(graph, F.linear)
    node.meta["noble"] = True
    assert graph.product(node) == Skip("has its branch already")


# --- constants -------------------------------------------------------------------------------------------------------


def test_constants_are_parameters_and_pure_functions_of_them():
    graph = graph_of(lambda m, x: F.linear(x, torch.t(m.weight)[1:] + m.bias[0]), layer())
    weight = node_of(graph, F.linear).args[1]
    model = graph.graph_module
    assert torch.equal(graph.constant(weight), model.weight.t()[1:] + model.bias[0])
    assert not graph.constant(weight).requires_grad
    assert is_constant(weight)
    assert {read.target for read in parameter_reads(weight)} == {"weight", "bias"}


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: F.linear(x, m.weight * x.max()),
        lambda m, x: F.linear(x, aten.bernoulli.default(m.weight)),
        lambda m, x: F.linear(x, aten.mul_.Tensor(m.weight, 2)),
        lambda m, x: F.linear(x, m.noble(m.weight)),
        lambda m, x: F.linear(x, x),
    ],
    ids=["of the input", "random", "changed in place", "a module's", "the input"],
)
def test_what_is_no_constant(function):
    graph = graph_of(function, layer())
    weight = node_of(graph, F.linear).args[1]
    assert graph.constant(weight) is None
    assert not is_constant(weight)
    assert graph.constants(None, weight) == Skip("its matrices are computed in the graph, not constant")


def test_constants_of_several_and_of_none():
    graph = graph_of(lambda m, x: F.linear(x, m.weight), layer())
    weight = node_of(graph, "weight")
    first, second = graph.constants(weight, None)
    assert torch.equal(first, graph.graph_module.weight)
    assert second is None
    assert graph.constant(2.0) is None


@pytest.mark.parametrize(
    ("function", "alone"),
    [
        (lambda m, x: F.linear(x, m.q.weight), True),
        (lambda m, x: F.linear(x, torch.t(torch.t(m.q.weight))), True),
        (lambda m, x: F.linear(x, m.q.weight) + m.q.weight.sum(), False),
        (lambda m, x: F.linear(x, m.q.weight) + aten.mm.default(x, torch.t(m.q.weight)), False),
        (lambda m, x: F.linear(x, m.q.weight) + torch.relu(x) @ m.k.weight.t(), False),
    ],
    ids=["alone", "through views", "read again", "read again through a view", "tied"],
)
def test_who_else_reads_a_parameter(function, alone):
    model = layers()
    model.k.weight = model.q.weight
    graph = graph_of(function, model)
    node = node_of(graph, F.linear)
    assert graph.sole_reader(node.args[1], node) == alone
