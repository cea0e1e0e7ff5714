"""Arguments, operands and grids."""

import pytest
import torch

from noble_fx.codegen.kernel import Argument, Kernel, moved_bytes, shared_operand, site_operand
from noble_fx.codegen.plan import Layer

ONE = Layer(64, (48,), 8, "identity-0123", torch.float32, torch.float32)
TWO = Layer(64, (48, 16), 8, "identity-0123", torch.float32, torch.float32)


def test_arguments_know_whose_they_are():
    weight = site_operand(TWO, 1, "weight", "bf16", (16, 64))
    assert weight.pointer == Argument("weight_1_ptr", "*bf16", "weight", 1)
    assert weight.stride(0) == Argument("weight_1_stride_0", "i32", "weight", 1, 0)
    assert [weight.pointer.plain, weight.stride(0).plain] == ["weight_ptr", "weight_stride_0"]
    assert Argument("rows", "i32").plain == "rows"


def test_a_site_alone_and_what_sites_share_have_no_number():
    assert site_operand(ONE, 0, "weight", "bf16", (48, 64)).pointer.name == "weight_ptr"
    assert shared_operand("x", "bf16", ("rows", 64)).pointer.name == "x_ptr"


def test_bytes_by_row_and_once():
    operands = [
        shared_operand("x", "bf16", ("rows", 64)),
        site_operand(ONE, 0, "h", "fp32", ("rows", 8), written=True),
        site_operand(ONE, 0, "up", "bf16", (48, 8)),
        site_operand(ONE, 0, "gain", "fp32", ()),
        site_operand(ONE, 0, "partials", "fp32", ("row tiles", 100), written=True),
    ]
    assert moved_bytes(operands) == (64 * 2 + 8 * 4, 48 * 8 * 2 + 4)


@pytest.mark.parametrize(("row_tile", "rows", "programs"), [(32, 1, 3), (32, 64, 6), (32, 65, 9), (0, 65, 3)])
def test_the_grid(row_tile, rows, programs):
    assert Kernel("k", "", (), row_tile, blocks=3, warps=4, stages=1).programs(rows) == programs
