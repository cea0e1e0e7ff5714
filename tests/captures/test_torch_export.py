"""What every caller of torch.export shares."""

import logging
import sys
import warnings

import pytest
import torch
from torch import nn
from torch.export import Dim

from noble_fx import CaptureError, ExportError
from noble_fx.captures import torch_export


class Signature(nn.Module):
    def forward(self, x, *rest, scale=1.0, use_cache=True, **more):
        return x


def test_arguments_are_bound_by_name_and_those_of_kwargs_beside_the_others():
    x = torch.ones(2)
    bound = torch_export.bound_arguments(Signature(), (x, 1, 2), {"scale": 2.0, "extra": 3})
    assert bound == {"x": x, "rest": (1, 2), "scale": 2.0, "extra": 3}
    with pytest.raises(TypeError, match="missing a required argument: 'x'"):
        torch_export.bound_arguments(Signature(), (), {})


@pytest.mark.parametrize("error", [CaptureError, ExportError])
def test_a_cache_is_left_out_where_there_may_be_one(error):
    assert torch_export.without_cache(nn.Linear(2, 2), {"x": 1}, error) == {"x": 1}
    assert torch_export.without_cache(Signature(), {"x": 1}, error) == {"x": 1, "use_cache": False}
    with pytest.raises(error, match="use_cache=True asks for a key–value cache"):
        torch_export.without_cache(Signature(), {"use_cache": True}, error)


@pytest.mark.parametrize(
    ("tensor", "axes"),
    [
        (torch.ones(2, 3), [0]),
        (torch.ones(2, 3, dtype=torch.long), [0, 1]),
        (torch.ones(2, 3, 4), [0, 1]),
        (torch.ones(2, 3, 4, 5), [0]),
        (torch.ones(()), []),
    ],
)
def test_batch_and_sequence_are_dynamic(tensor, axes):
    assert torch_export.dynamic_axes(tensor) == axes
    assert torch_export.automatic_shapes({"x": [tensor, 1]}) == {"x": [dict.fromkeys(axes, Dim.AUTO), None]}


def test_an_example_of_one_is_doubled_along_dynamic_axes_alone():
    doubled = torch_export.at_least_two({"x": torch.ones(1, 1), "ids": torch.zeros(1, 1, dtype=torch.long), "n": 1})
    assert (doubled["x"].shape, doubled["ids"].shape, doubled["n"]) == ((2, 1), (2, 2), 1)


def test_nothing_is_said_and_everything_is_put_back(capsys):
    logger = logging.getLogger("torch.export")
    before, filters, out = logger.level, list(warnings.filters), sys.stdout
    with torch_export.quiet():
        print("progress")
        warnings.warn("internals", stacklevel=1)
    with pytest.raises(RuntimeError, match="inside"), torch_export.quiet():
        raise RuntimeError("inside")
    assert (logger.level, warnings.filters, sys.stdout) == (before, filters, out)
    assert capsys.readouterr() == ("", "")


def test_the_first_cause_in_one_line():
    first = ValueError("\n  what happened  \nand pages of advice")
    last = RuntimeError("last")
    last.__cause__ = KeyError("between")
    last.__cause__.__cause__ = first
    assert torch_export.first_cause(last) is first
    assert torch_export.first_line(first) == "what happened"
    assert torch_export.first_line(ValueError("")) == "ValueError"


def test_errors_about_dynamic_sizes_are_told_from_others():
    class ConstraintViolationError(Exception):
        pass

    assert torch_export.blames_shapes(ConstraintViolationError("no"))
    assert torch_export.blames_shapes(ValueError("dynamic_shapes has another structure"))
    assert not torch_export.blames_shapes(ValueError("mat1 and mat2 cannot be multiplied"))
