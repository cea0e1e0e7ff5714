"""Operands go through every order unchanged, and a place means the same in each."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import fx

from noble_fx.ops.operands import Operands, SiteOperands, places
from noble_fx.schema import LINEAR, LINEAR_GROUP


@st.composite
def operands(draw: st.DrawFn, least: int = 1) -> Operands[str]:
    """Named operands of one to four sites, all with a bias or all without, of any number of σ's tensors."""
    bias, down_bias = draw(st.booleans()), draw(st.booleans())
    count, tensors = draw(st.integers(least, 4)), draw(st.integers(0, 3))

    def site(i: int) -> SiteOperands[str]:
        act = tuple(f"act{i}_{n}" for n in range(tensors))
        return SiteOperands(f"w{i}", f"b{i}" if bias else None, f"d{i}", f"e{i}" if down_bias else None, f"u{i}", act)

    return Operands("x", tuple(map(site, range(count))), "key")


def node_of(operator, args, by_name: int) -> fx.Node:
    """A node of `operator`, its last `by_name` arguments given by name."""
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}

    def as_node(value):
        if isinstance(value, list):
            return [as_node(element) for element in value]
        if value is None or value == "key":
            return value
        return nodes.setdefault(value, graph.placeholder(value))

    names = [argument.name for argument in operator._schema.arguments]
    values = [as_node(value) for value in args]
    cut = len(values) - by_name
    return graph.call_function(operator, tuple(values[:cut]), dict(zip(names[cut:], values[cut:], strict=True)))


@given(operands())
def test_the_flat_order_and_back(whole):
    flat = whole.flat()
    assert Operands.from_flat(flat, len(whole.sites), "key") == whole
    assert Operands.from_flat(tuple(flat), len(whole.sites), "key") == whole


def test_the_flat_order_is_field_after_field_and_sigma_site_after_site():
    first = SiteOperands("w0", None, "d0", "e0", "u0", ("p0", "q0"))
    second = SiteOperands("w1", None, "d1", "e1", "u1", ("p1", "q1"))
    flat = Operands("x", (first, second)).flat()
    assert flat == ["x", "w0", "w1", None, None, "d0", "d1", "e0", "e1", "u0", "u1", "p0", "q0", "p1", "q1"]


@given(operands(), st.integers(0, 8))
def test_a_node_and_back(whole, by_name):
    node = node_of(whole.target, whole.node_args(), by_name)
    assert node.target is (LINEAR if len(whole.sites) == 1 else LINEAR_GROUP)
    assert Operands.of_node(node).map(str) == whole


@given(operands())
def test_a_group_of_any_number_and_back(whole):
    assert Operands.of_group(*whole.group_args()) == whole
    assert Operands.of_node(node_of(LINEAR_GROUP, whole.group_args(), 0)).map(str) == whole


@given(operands())
def test_taken_apart_and_joined(whole):
    alone = whole.split()
    assert [member.sites[0].weight for member in alone] == [f"w{i}" for i in range(len(whole.sites))]
    assert all(Operands.of_linear(*member.linear_args()) == member for member in alone)
    assert Operands.join(alone) == whole


@given(operands(), st.data())
def test_places_are_those_of_the_sites_asked_for(whole, data):
    count = len(whole.sites)
    sites = data.draw(st.lists(st.integers(0, count - 1), min_size=1, unique=True))
    flat = whole.flat()
    assert [flat[place] for place in places(len(flat), count, sites)] == whole.select(sites).flat()


@given(operands())
def test_what_is_absent_is_not_mapped(whole):
    shouted = whole.map(str.upper)
    assert shouted.flat() == [None if operand is None else operand.upper() for operand in whole.flat()]


def test_a_group_with_some_biases_is_refused():
    with_bias, without = SiteOperands("w", "b", "d", None, "u", ()), SiteOperands("w", None, "d", None, "u", ())
    with pytest.raises(ValueError, match="all with a bias or all without"):
        Operands("x", (with_bias, without)).group_args()


def test_more_than_one_site_is_no_call_of_linear():
    site = SiteOperands("w", "b", "d", None, "u", ())
    with pytest.raises(ValueError, match="too many values"):
        Operands("x", (site, site)).linear_args()


def test_the_operators_take_them_by_these_names():
    for operator in (LINEAR, LINEAR_GROUP):
        names = [argument.name for argument in operator._schema.arguments]
        assert names == ["x", *SiteOperands._fields, "act_key"]


def test_tensors_are_held_and_not_compared():
    x, weight = torch.ones(2, 3), torch.ones(4, 3)
    whole = Operands.of_linear(x, weight, None, torch.ones(1, 3), None, torch.ones(4, 1), [torch.ones(1)], "key")
    assert whole.flat()[1] is weight
    assert whole.linear_args()[0] is x
    assert len(whole.group_args()[2]) == 0
