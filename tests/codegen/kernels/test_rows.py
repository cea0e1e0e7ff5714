"""What the bottleneck's kernels share: rows that are clamped, narrow products over one read."""

import pytest
import torch

from noble_fx.codegen.kernels.rows import Narrow, begin_rows, clamped, narrow_products
from noble_fx.codegen.plan import Layer, Tile, make_plan
from noble_fx.codegen.sigma.axes import Segment
from noble_fx.codegen.source import Source

PLAN = make_plan(Layer(100, (24,), 12, "identity-0123", torch.float32, torch.float32), "interpreter")
TILE = Tile(rows=32, columns=0, depth=32, warps=4, stages=1)


def narrow(depth: int | str, transposed: bool, *segments: Segment) -> list[str]:
    source = Source()
    outs = [Narrow("h", "down", segments)]
    narrow_products(source, PLAN, TILE, "x", depth, outs, transposed)
    return str(source).splitlines()


def test_reads_past_the_end_are_clamped():
    source = Source()
    begin_rows(source, 32, "row_tile")
    assert "row_read = tl.minimum(row, rows - 1)[:, None]" in str(source)
    assert clamped("channel", Segment(0, 12, 16)) == "tl.minimum(channel, 11)"
    assert clamped("channel", Segment(0, 16, 16)) == "channel"
    assert clamped("channel", Segment(0, 200, 64)) == "tl.minimum(channel, 199)"


@pytest.mark.parametrize(("depth", "masked"), [(96, False), (100, True), ("columns", True)])
def test_a_ragged_depth_is_masked(depth, masked):
    lines = narrow(depth, True, Segment(0, 12, 16))
    assert any(f"x_tile_ptr, mask=step[None, :] < {depth} - start, other=0.0" in line for line in lines) == masked


def test_the_left_operand_is_read_once_for_several_tiles():
    lines = narrow(96, False, Segment(0, 64, 64), Segment(64, 8, 16))
    assert sum("tl.load(x_tile_ptr" in line for line in lines) == 1
    assert sum("tl.dot(x_tile, " in line for line in lines) == 2
    assert [line.strip() for line in lines if line.strip().startswith("down_c64_tile_ptr += ")] == [
        f"down_c64_tile_ptr += {32 * 12}"
    ]
