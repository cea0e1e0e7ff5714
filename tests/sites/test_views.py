"""A parameter followed through views: which axis of it each axis is, and what range of it."""

import operator

import pytest
import torch
from torch import fx, nn

from noble_fx.sites.views import View, bound, parameter_shapes, view_of

aten = torch.ops.aten
SHAPE = (6, 4, 3)
FULL = ((0, 0, 6), (1, 0, 4), (2, 0, 3))


class Owner(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Module()
        self.inner.w = nn.Parameter(torch.arange(72.0).reshape(SHAPE))
        self.inner.table = torch.ones(2)
        self.inner.register_buffer("buffer", torch.ones(2))


def node_of(function) -> fx.Node:
    """The node that `function` of w makes; x is an input."""
    graph = fx.Graph()
    w, x = graph.get_attr("inner.w"), graph.placeholder("x")

    def call(target, *args, **kwargs):
        return graph.call_function(target, args, kwargs)

    return function(call, w, x)


def view(function) -> View | None:
    return view_of(node_of(function), parameter_shapes(Owner()))


# name -> the nodes, the axes that are left, what `select` fixed
VIEWS = {
    "itself": (lambda call, w, x: w, FULL, {}),
    "a copy": (lambda call, w, x: call(aten.clone.default, w), FULL, {}),
    "another dtype": (lambda call, w, x: call(aten.to.dtype, w, torch.float64), FULL, {}),
    "mT": (lambda call, w, x: call(aten.mT.default, w), (FULL[0], FULL[2], FULL[1]), {}),
    "transpose": (lambda call, w, x: call(aten.transpose.int, w, 0, -1), (FULL[2], FULL[1], FULL[0]), {}),
    "transpose by name": (
        lambda call, w, x: call(aten.transpose.int, w, dim0=0, dim1=1),
        (FULL[1], FULL[0], FULL[2]),
        {},
    ),
    "permute": (lambda call, w, x: call(aten.permute.default, w, [2, 0, -2]), (FULL[2], FULL[0], FULL[1]), {}),
    "slice": (lambda call, w, x: call(aten.slice.Tensor, w, 0, 2, 5), ((0, 2, 5), *FULL[1:]), {}),
    "slice from the end": (lambda call, w, x: call(aten.slice.Tensor, w, 1, -3), (FULL[0], (1, 1, 4), FULL[2]), {}),
    "slice beyond the end": (
        lambda call, w, x: call(aten.slice.Tensor, w, 0, 0, 2**63 - 1),
        FULL,
        {},
    ),
    "slice by name": (lambda call, w, x: call(aten.slice.Tensor, w, dim=-1, end=2), (*FULL[:2], (2, 0, 2)), {}),
    "slice with defaults": (lambda call, w, x: call(aten.slice.Tensor, w), FULL, {}),
    "slice of a slice": (
        lambda call, w, x: call(aten.slice.Tensor, call(aten.slice.Tensor, w, 0, 1, 6), 0, 2, 4),
        ((0, 3, 5), *FULL[1:]),
        {},
    ),
    "rows": (lambda call, w, x: call(operator.getitem, w, slice(1, 3)), ((0, 1, 3), *FULL[1:]), {}),
    "select": (lambda call, w, x: call(aten.select.int, w, 0, 2), FULL[1:], {0: 2}),
    "select from the end": (lambda call, w, x: call(aten.select.int, w, -1, -1), FULL[:2], {2: 2}),
    "select in a slice": (
        lambda call, w, x: call(aten.select.int, call(aten.slice.Tensor, w, 0, 2, 6), 0, -1),
        FULL[1:],
        {0: 5},
    ),
    "select twice": (
        lambda call, w, x: call(aten.select.int, call(aten.select.int, w, 0, 1), 0, 3),
        FULL[2:],
        {0: 1, 1: 3},
    ),
    "split": (
        lambda call, w, x: call(operator.getitem, call(aten.split.Tensor, w, 4), 1),
        ((0, 4, 6), *FULL[1:]),
        {},
    ),
    "split along": (
        lambda call, w, x: call(operator.getitem, call(aten.split.Tensor, w, 2, 1), 0),
        (FULL[0], (1, 0, 2), FULL[2]),
        {},
    ),
    "split by name": (
        lambda call, w, x: call(operator.getitem, call(aten.split.Tensor, w, split_size=2, dim=-2), 1),
        (FULL[0], (1, 2, 4), FULL[2]),
        {},
    ),
    "split with sizes": (
        lambda call, w, x: call(operator.getitem, call(aten.split_with_sizes.default, w, [1, 2, 3]), 2),
        ((0, 3, 6), *FULL[1:]),
        {},
    ),
    "chunk": (
        lambda call, w, x: call(operator.getitem, call(aten.chunk.default, w, 4), 2),
        ((0, 4, 6), *FULL[1:]),
        {},
    ),
}


@pytest.mark.parametrize("name", VIEWS)
def test_views(name):
    function, axes, fixed = VIEWS[name]
    assert view(function) == View("inner.w", axes, fixed)


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_says_where_the_numbers_are(name):
    function, axes, fixed = VIEWS[name]
    w = Owner().inner.w
    value = function(lambda target, *args, **kwargs: target(*args, **kwargs), w, None)
    taken = w[tuple(fixed.get(axis, slice(None)) for axis in range(3))]
    left = [axis for axis in range(3) if axis not in fixed]
    expected = taken.permute([left.index(axis) for axis, _, _ in axes])
    for at, (_, start, stop) in enumerate(axes):
        expected = expected.narrow(at, start, stop - start)
    assert torch.equal(value.to(w.dtype), expected)


@pytest.mark.parametrize(
    "function",
    [
        lambda call, w, x: x,
        lambda call, w, x: 3,
        lambda call, w, x: call(aten.relu.default, w),
        lambda call, w, x: call(aten.add.Tensor, w, w),
        lambda call, w, x: call(aten.t.default, x),
        lambda call, w, x: call(aten.slice.Tensor, w, 0, 0, 6, 2),
        lambda call, w, x: call(aten.slice.Tensor, w, 0, x),
        lambda call, w, x: call(aten.select.int, w, 0, x),
        lambda call, w, x: call(operator.getitem, w, 1),
        lambda call, w, x: call(operator.getitem, w, slice(0, 6, 2)),
        lambda call, w, x: call(operator.getitem, call(aten.split.Tensor, w, 2), x),
        lambda call, w, x: call(operator.getitem, call(aten.split.Tensor, x, 2), 0),
        lambda call, w, x: call(aten.split.Tensor, w, 2),
    ],
    ids=[
        "an input", "no node", "a function", "a sum", "a view of an input", "every second", "from somewhere",
        "somewhere", "an index", "every second row", "some piece", "a piece of an input", "all pieces",
    ],
)  # fmt: skip
def test_what_is_no_view(function):
    assert view(function) is None


def test_shapes_are_those_of_parameters_alone():
    shape_of = parameter_shapes(Owner())
    assert shape_of("inner.w") == SHAPE
    for name in ("inner.table", "inner.buffer", "inner.nothing", "nothing.w", "inner"):
        assert shape_of(name) is None


# --- arguments by name -----------------------------------------------------------------------------------------------


def test_arguments_have_the_names_of_the_schema_and_its_defaults():
    node = node_of(lambda call, w, x: call(aten.conv2d.default, x, w, padding=[1, 1]))
    arguments = bound(node)
    assert (arguments["input"], arguments["weight"]) == node.args
    assert (arguments["bias"], arguments["stride"], arguments["padding"], arguments["groups"]) == (
        None,
        [1, 1],
        [1, 1],
        1,
    )


@pytest.mark.parametrize("target", [aten.linear.default, torch.nn.functional.linear])
def test_by_place_and_by_name_are_the_same(target):
    place = node_of(lambda call, w, x: call(target, x, w))
    name = node_of(lambda call, w, x: call(target, input=x, weight=w))
    assert [str(value) for value in bound(place).values()] == [str(value) for value in bound(name).values()]


def test_arguments_that_do_not_fit():
    with pytest.raises(TypeError, match="do not fit the operator's schema"):
        bound(node_of(lambda call, w, x: call(aten.mm.default, x)))
