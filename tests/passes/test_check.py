"""The check of a pass fails for each thing that it promises."""

import operator

import pytest
import torch
from torch import fx
from torch.nn import functional as F

from noble_fx.passes.check import check_rewrite, listing
from noble_fx.passes.example import Example, traced
from noble_fx.passes.history import Changed, Skip
from noble_fx.passes.rule import rule

DOUBLED = Example(before=lambda m, x: x + x, after=lambda m, x: x * 2)


@rule(operator.add, example=DOUBLED)
def double(build, node, graph):
    """x + x  ->  x · 2"""
    return build.call(operator.mul, node.args[0], 2)


def test_a_right_pass():
    check_rewrite(double)


def test_another_example():
    with pytest.raises(AssertionError, match="rewrites nothing"):
        check_rewrite(double, Example(before=lambda m, x: x - x, after=lambda m, x: x * 0))


def test_no_rewrite_in_words():
    @rule(operator.add, example=DOUBLED)
    def silent(build, node, graph):
        """Doubles."""
        return build.call(operator.mul, node.args[0], 2)

    with pytest.raises(AssertionError, match="docstring of silent does not begin with its rewrite"):
        check_rewrite(silent)


def test_no_example():
    @rule(operator.add)
    def unshown(build, node, graph):
        """x + x  ->  x · 2"""

    with pytest.raises(AssertionError, match="unshown has no example"):
        check_rewrite(unshown)


def test_a_pass_that_only_skips():
    @rule(operator.add, example=DOUBLED)
    def refuse(build, node, graph):
        """x + x  ->  x · 2"""
        return Skip("too hard")

    with pytest.raises(AssertionError, match=r"refuse rewrites nothing in its example: .*too hard"):
        check_rewrite(refuse)


def test_another_graph_than_the_example_says():
    @rule(operator.add, example=DOUBLED)
    def triple(build, node, graph):
        """x + x  ->  x · 2"""
        return build.call(operator.mul, node.args[0], 3)

    with pytest.raises(AssertionError, match=r"triple makes\n.*mul.*3.*\n(.*\n)*where its example says\n.*mul.*2"):
        check_rewrite(triple)


def test_wrong_numbers():
    wrong = Example(before=DOUBLED.before, after=DOUBLED.after, truth=lambda m, x: x * 2 + 1e-9)
    with pytest.raises(AssertionError, match="not close"):
        check_rewrite(double, wrong)


def test_a_pass_that_rewrites_its_own_result():
    @rule(operator.add, example=Example(before=lambda m, x: x + 1, after=lambda m, x: 1 + x))
    def swap(build, node, graph):
        """x + y  ->  y + x"""
        return build.call(operator.add, *reversed(node.args))

    with pytest.raises(AssertionError, match="swap rewrites its own result"):
        check_rewrite(swap)


def test_a_pass_that_changes_its_own_result_without_a_word():
    @rule(operator.mul, operator.add, example=DOUBLED)
    def restless(build, node, graph):
        """x + x  ->  x · 2"""
        if node.target is operator.add:
            return build.call(operator.mul, node.args[0], 2)
        node.args = (node.args[0], node.args[1] + 1)
        return Skip("a product")

    with pytest.raises(AssertionError, match="restless changes its own result and does not say so"):
        check_rewrite(restless)


@pytest.mark.parametrize(("value", "message"), [(None, r"loses meta\['val'\]"), (torch.empty(1, device="meta"), "not")])
def test_what_was_known_of_values(value, message):
    @rule(operator.add, example=DOUBLED)
    def forgetful(build, node, graph):
        """x + x  ->  x · 2"""
        product = build.call(operator.mul, node.args[0], 2)
        product.meta["val"] = value
        return product

    with pytest.raises(AssertionError, match=message):
        check_rewrite(forgetful)


TURNED = Example(before=lambda m, x: (x + 1) * 2, after=lambda m, x: (x - 1) * 2, truth=lambda m, x: (x - 1) * 2)


def test_a_pass_that_changes_the_graph_around_a_node():
    @rule(operator.mul, example=TURNED)
    def turn(build, node, graph):
        """(x + a) · b  ->  (x - a) · b"""
        inner = node.args[0]
        if inner.target is operator.sub:
            return Skip("turned already")
        inner.target = operator.sub
        return Changed(node)

    check_rewrite(turn)


# --- graphs as text --------------------------------------------------------------------------------------------------


def graph_of(function) -> fx.Graph:
    return traced(function, torch.nn.Linear(3, 3)).graph


def test_graphs_are_equal_whatever_their_names_and_order():
    first = graph_of(lambda m, x: (x + 1) * F.linear(x, m.weight))

    def other(m, x):
        product = F.linear(x, m.weight)
        return (x + 1) * product

    assert str(first) != str(graph_of(other))
    assert listing(first) == listing(graph_of(other))


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: (x + 2) * F.linear(x, m.weight),
        lambda m, x: (x + 1) * F.linear(x, m.bias),
        lambda m, x: (x + 1) * F.linear(input=x, weight=m.weight),
        lambda m, x: F.linear(x, m.weight) * (x + 1),
        lambda m, x: ((x + 1) * F.linear(x, m.weight), x - 1)[0],
        lambda m, x: (x + 1) * F.linear(x.clone(), m.weight),
    ],
    ids=["number", "parameter", "keywords", "order of arguments", "an unused node", "one more node"],
)
def test_graphs_that_differ(function):
    assert listing(graph_of(function)) != listing(graph_of(lambda m, x: (x + 1) * F.linear(x, m.weight)))


def test_a_value_computed_once_is_not_one_computed_twice():
    def once(m, x):
        y = x + 1
        return y * y

    assert listing(graph_of(once)) != listing(graph_of(lambda m, x: (x + 1) * (x + 1)))
