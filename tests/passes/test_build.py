"""What a rule makes stands in front of the node that it rewrites."""

import operator

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

from noble_fx.passes.build import Build
from noble_fx.passes.example import IN, layer, traced


def start() -> tuple[fx.GraphModule, fx.Node, Build]:
    """relu(linear(x, w)), and what builds in front of the linear."""
    graph_module = traced(lambda m, x: torch.relu(F.linear(x, m.weight)), layer())
    node = next(node for node in graph_module.graph.nodes if node.target is F.linear)
    return graph_module, node, Build(graph_module.graph, node)


@pytest.mark.parametrize(
    ("make", "op", "target"),
    [
        (lambda build, x: build.call(torch.add, x, 1, alpha=2), "call_function", torch.add),
        (lambda build, x: build.method("flatten", x, 0), "call_method", "flatten"),
        (lambda build, x: build.module("noble", x), "call_module", "noble"),
        (lambda build, x: build.attribute("noble.up"), "get_attr", "noble.up"),
    ],
    ids=["call", "method", "module", "attribute"],
)
def test_nodes_stand_in_front(make, op, target):
    _, node, build = start()
    new = make(build, node.args[0])
    assert (new.op, new.target) == (op, target)
    assert new.next is node
    assert build.sees(new)
    assert not build.sees(node)


def test_keywords_are_passed_on():
    _, node, build = start()
    assert build.call(torch.add, node.args[0], 1, alpha=2).kwargs == {"alpha": 2}


def test_a_constant_is_a_parameter_beside_another_under_a_free_name():
    graph_module, node, build = start()
    weight = node.args[1]
    first = build.constant("joined", torch.ones(2), beside=weight)
    second = build.constant("joined", torch.zeros(2), beside=build.call(torch.t, weight))
    assert [first.target, second.target] == ["joined", "joined_"]
    assert torch.equal(graph_module.joined, torch.ones(2))
    assert not graph_module.joined_.requires_grad
    inner = build.constant("joined", torch.ones(1), beside=build.attribute("noble.down"))
    assert inner.target == "noble.joined"
    assert graph_module.noble.joined.shape == (1,)


def test_again_is_the_node_once_more_and_known_to_have_its_branch():
    _, node, build = start()
    node.meta["val"] = "kept"
    again = build.again()
    assert (again.target, again.args) == (node.target, node.args)
    assert again.meta == {"val": "kept", "noble": True}
    assert "noble" not in node.meta


def test_a_copy_reads_other_inputs():
    graph_module, node, build = start()
    (relu,) = (user for user in node.users)
    doubled = build.call(operator.mul, node.args[0], 2)
    copied = build.copy(relu, lambda source: {node: doubled}[source])
    assert copied.args == (doubled,)
    node.replace_all_uses_with(copied, delete_user_cb=lambda user: user is relu)
    graph_module.graph.lint()
    x = torch.randn(3, IN)
    graph_module.recompile()
    assert torch.equal(graph_module(x), torch.relu(torch.relu(2 * x)))


def test_the_model_without_a_name_holds_its_constants_itself():
    graph = fx.Graph()
    weight = graph.get_attr("w")
    node = graph.call_function(torch.neg, (weight,))
    graph.output(node)
    root = nn.Module()
    root.w = nn.Parameter(torch.ones(1))
    graph_module = fx.GraphModule(root, graph)
    assert (
        Build(graph_module.graph, next(n for n in graph_module.graph.nodes if n.target is torch.neg))
        .constant("v", torch.ones(1), beside=next(n for n in graph_module.graph.nodes if n.op == "get_attr"))
        .target
        == "v"
    )
