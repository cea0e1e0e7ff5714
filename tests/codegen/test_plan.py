"""Plans: tiles that fit, and what has none."""

from dataclasses import replace

import pytest
import torch

from noble_fx.codegen.plan import (
    BACKENDS,
    FUSED_RANK,
    NARROW_RANK,
    SHARED_BYTES,
    Layer,
    make_plan,
    power_of_two,
    why_not,
    widest_tile,
)
from noble_fx.errors import KernelError

LAYER = Layer(1024, (4096,), 64, "cosnet-0123", torch.bfloat16, torch.bfloat16)


def test_what_has_no_kernel_says_why():
    assert why_not(LAYER) is None
    assert "no kernels for torch.float64" in str(why_not(replace(LAYER, dtype=torch.float64)))
    assert "no kernels for torch.float64" in str(why_not(replace(LAYER, act_dtype=torch.float64)))
    assert str(why_not(replace(LAYER, rank=300))) == "rank 300 is over the kernels' limit of 256"
    with pytest.raises(KernelError, match="rank 300 is over"):
        make_plan(replace(LAYER, rank=300))
    with pytest.raises(KernelError, match="backend='cdua' is unknown"):
        make_plan(LAYER, "cdua")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shared", sorted(set(SHARED_BYTES.values())))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rank", [1, 12, 64, 128, 129, 256])
def test_tiles_fit(backend, shared, dtype, rank):
    layer = replace(LAYER, rank=rank, dtype=dtype)
    plan = make_plan(layer, backend, shared=shared)
    assert plan.split_backward or rank <= FUSED_RANK
    assert not plan.split_backward or rank > NARROW_RANK
    assert plan.split_forward == (plan.split_backward and dtype == torch.float32)
    for tile in (plan.bottleneck_forward, plan.bottleneck_backward, plan.linear_up_forward, plan.linear_backward_input):
        sides = [side for side in (tile.rows, tile.columns, tile.depth) if side]
        assert all(side & (side - 1) == 0 and side >= 16 for side in sides)
        step = (tile.rows + (tile.columns or power_of_two(rank))) * tile.depth * dtype.itemsize
        assert tile.stages == 1 or tile.stages * step <= shared


@pytest.mark.parametrize(
    ("backend", "target", "dtype", "widest"),
    [
        ("cuda", "sm_90", torch.bfloat16, 128),
        ("cuda", "sm_100", torch.float16, 128),
        ("cuda", "sm_80", torch.bfloat16, 64),
        ("cuda", "sm_120", torch.bfloat16, 64),
        ("hip", "gfx950", torch.bfloat16, 64),
        ("cuda", "sm_90", torch.float32, 64),
        ("interpreter", "sm_90", torch.float32, 128),
    ],
)
def test_the_widest_bottleneck_of_one_kernel(backend, target, dtype, widest):
    for rank in (1, widest, widest + 1, 256):
        plan = make_plan(replace(LAYER, rank=rank, dtype=dtype), backend, shared=SHARED_BYTES[target])
        assert plan.split_backward == (rank > widest)
        assert plan.split_forward == (rank > widest and dtype == torch.float32)


def test_a_small_layer_gets_small_tiles():
    plan = make_plan(replace(LAYER, in_features=20, out_features=(24,)))
    assert plan.linear_up_forward.columns == 32
    assert plan.linear_up_forward.depth == 32


@pytest.mark.parametrize(("size", "tile"), [(1, 16), (16, 16), (17, 32), (128, 128), (200, 256)])
def test_powers_of_two(size, tile):
    assert power_of_two(size) == tile
    assert widest_tile(128) == 128
    assert widest_tile(129) == 64


def test_the_hardwares_cosine_is_for_half_precision_on_cuda():
    assert make_plan(LAYER).fast_cosine
    assert not make_plan(LAYER, "hip").fast_cosine
    assert not make_plan(replace(LAYER, dtype=torch.float32)).fast_cosine
    assert make_plan(replace(LAYER, dtype=torch.float32)).exact


def test_names_of_sites():
    assert LAYER.name("weight", 0) == "weight"
    assert replace(LAYER, out_features=(8, 8)).name("weight", 1) == "weight_1"


@pytest.mark.parametrize(("rank", "rows"), [(64, 64), (128, 64), (129, 16), (256, 16)])
def test_a_gated_sigma_beyond_rank_128_has_fewer_rows_at_once(rank, rows):
    """It holds twice the channels; where operands are in shared memory others keep 64 rows."""
    layer = replace(LAYER, rank=rank, dtype=torch.bfloat16)
    assert make_plan(layer, shared=SHARED_BYTES["sm_90"], gated=True).bottleneck_forward.rows == rows
    assert make_plan(layer, shared=SHARED_BYTES["sm_90"]).bottleneck_forward.rows == 64
