"""The sizes at which a file is tried."""

import pytest
import torch
from torch import nn
from torch.export import Dim

from noble_fx.onnx_export.cases import cases, shape_text


class Sum(nn.Module):
    def forward(self, x, mask=None, *, twice=None):
        return x.sum() if twice is None else x.sum() + twice.sum()


def sizes(args, kwargs, shapes, ranged=False):
    program = torch.export.export(Sum(), args, kwargs, dynamic_shapes=shapes, strict=False)
    return [shape_text(case) for case in cases(args, kwargs, program, ranged)]


def test_one_less_one_more_twice():
    shapes = {"x": {0: Dim.AUTO, 1: Dim.AUTO}, "mask": None}
    assert sizes((torch.ones(3, 5, 4), None), {}, shapes) == [
        "[3, 5, 4]",
        "[1, 1, 4]",
        "[2, 4, 4]",
        "[4, 6, 4]",
        "[6, 10, 4]",
    ]


def test_a_size_that_hangs_on_another_follows_it():
    rows = Dim("rows", min=2)
    args, kwargs = (torch.ones(3, 2),), {"twice": torch.ones(6)}
    tried = sizes(args, kwargs, {"x": {0: rows}, "twice": {0: 2 * rows}})
    assert tried == ["[3, 2] × [6]", "[1, 2] × [2]", "[2, 2] × [4]", "[4, 2] × [8]", "[6, 2] × [12]"]


@pytest.mark.parametrize(("ranged", "expected"), [(True, {3, 2, 4}), (False, {3, 1, 2, 4, 6})])
def test_ranges_hold_where_the_caller_gave_them(ranged, expected):
    tried = sizes((torch.ones(3),), {}, {"x": {0: Dim("n", min=2, max=4)}}, ranged)
    assert {int(text.strip("[]")) for text in tried} == expected


def test_nothing_dynamic_is_one_size():
    assert set(sizes((torch.ones(3),), {}, None)) == {"[3]"}


def test_resizing_repeats_the_examples_own_values():
    program = torch.export.export(Sum(), (torch.arange(3),), dynamic_shapes={"x": {0: Dim.AUTO}}, strict=False)
    *_, ((last,), _) = cases((torch.arange(3),), {}, program, False)
    assert last.tolist() == [0, 1, 2, 0, 1, 2]
