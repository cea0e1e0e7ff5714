"""An output may be as far off as the coarsest dtype on its way, and no further."""

import pytest
import torch
from torch import nn

from noble_fx.onnx_export.program import lower
from noble_fx.onnx_export.tolerance import Tolerance, dtypes_in, tolerance_of, tolerances


def test_the_coarsest_dtype_decides():
    assert tolerance_of({torch.float64}) == Tolerance(1e-6, False)
    assert tolerance_of({torch.float64, torch.float32, torch.int64}) == Tolerance(1e-4, False)
    assert tolerance_of({torch.float32, torch.bfloat16, torch.float16}) == Tolerance(1e-1, True)
    assert tolerance_of({torch.int64, torch.bool}) == Tolerance(0.0, False)


def test_coarse_dtypes_are_seen_against_the_largest_value():
    assert Tolerance(1e-4, False).at(500.0) == 1e-4
    assert Tolerance(2e-2, True).at(500.0) == 10.0
    assert Tolerance(2e-2, True).at(0.5) == 2e-2


class Mixed(nn.Module):
    """Four results on ways of their own; the first goes through float16, changed in place at that."""

    def __init__(self):
        super().__init__()
        self.narrow = nn.Linear(4, 4).half()

    def forward(self, x, time, index):
        y = torch.zeros_like(x)
        y.add_(self.narrow(x.half()))
        return y, time - 1, index + 1, torch.cond(x.sum() > 0, lambda v: v.half().float(), lambda v: v * 2, (x,))


@pytest.fixture(scope="module")
def program():
    args = torch.ones(2, 4), torch.ones(2, dtype=torch.float64), torch.ones(2, dtype=torch.int32)
    return lower(torch.export.export(Mixed(), args, strict=False))


def test_each_output_by_what_it_is_computed_from(program):
    half, double, exact = tolerance_of({torch.float16}), tolerance_of({torch.float64}), tolerance_of(set())
    assert tolerances(program) == [half, double, exact, half]


def test_all_dtypes_of_a_program(program):
    assert dtypes_in(program) >= {torch.float16, torch.float32, torch.float64, torch.int32}
    assert torch.bfloat16 not in dtypes_in(program)
