"""The forward kernels: h, t and y in float64, one pass over x, y in one accumulation."""

import re

import pytest
import torch

from noble_fx.codegen.kernels.forward import bottleneck_forward, linear_up_forward
from noble_fx.codegen.plan import make_plan
from noble_fx.runtime.launch import launch
from tests.codegen.one_layer import branch_of, check_group, layer_of, near


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rank", "rows"), [(12, 33), (64, 64), (200, 40)])
def test_h_and_t(rank, rows, dtype):
    branch = branch_of("cosnet", rank).to(dtype)
    plan = make_plan(layer_of([branch], dtype), "interpreter")
    x = torch.randn(rows, 20).to(dtype)
    tensors = {f"act_{name.replace('.', '_')}": tensor.detach() for name, tensor in branch.act.named_parameters()}
    tensors |= {"x": x, "down": branch.down.detach(), "down_bias": branch.down_bias.detach()}
    tensors |= {"h": torch.full((rows, rank), torch.nan), "t": torch.full((rows, rank), torch.nan, dtype=dtype)}
    launch(plan, bottleneck_forward(plan), rows, tensors)
    exact = branch.double()
    h = torch.nn.functional.linear(x.double(), exact.down, exact.down_bias).detach()
    near("h", tensors["h"], h, dtype)
    assert tensors["h"].dtype == torch.float32  # backward computes a cosine of it
    near("t", tensors["t"], exact.act(h).detach(), dtype)


@pytest.mark.parametrize("columns", [(24,), (70, 24, 130)])
def test_a_group_reads_x_once(columns):
    branches = [branch_of("cos", 12, width) for width in columns]
    check_group(branches, rows=40)
    source = bottleneck_forward(make_plan(layer_of(branches))).source
    assert source.count("tl.load(x_tile_ptr") == 1
    assert source.count("tl.dot(x_tile, ") == len(columns)


def test_a_wide_group_has_a_program_for_each_site():
    """Together their values would not fit the registers."""
    branches = [branch_of("cosnet", 100, width) for width in (24, 40)]
    kernel = bottleneck_forward(make_plan(layer_of(branches)))
    assert kernel.blocks == 2
    assert kernel.source.count("tl.dot(x_tile, ") == 1
    check_group(branches, rows=40)


@pytest.mark.parametrize("bias", [False, True])
def test_y_is_one_accumulation(bias):
    plan = make_plan(layer_of([branch_of("cos", 12)], bias=bias))
    kernel = linear_up_forward(plan)
    body = kernel.source[kernel.source.index("def linear_up_forward(") :]
    assert re.findall(r"acc = tl\.dot\((\w+), (\w+), acc", body) == [("x_tile", "weight_tile"), ("t_tile", "up_tile")]
    assert body.count("tl.store(") == 1
    assert ("bias_ptr" in body) == bias
    assert ("y = x Wᵀ + b + t Uᵀ" in kernel.source) == bias


def test_flops_and_bytes():
    plan = make_plan(layer_of([branch_of("cos", 16, columns=48, inputs=64)], torch.bfloat16))
    narrow, wide = bottleneck_forward(plan), linear_up_forward(plan)
    assert narrow.flops_per_row == 2 * 16 * 64
    assert narrow.bytes_per_row == 2 * 64 + (4 + 2) * 16
    assert narrow.bytes_once == 2 * (16 * 64 + 16 + 2 * 16)  # D, d, ω and φ
    assert wide.flops_per_row == 2 * 48 * (64 + 16)
    assert wide.bytes_per_row == 2 * (64 + 16 + 48)
    assert wide.bytes_once == 2 * 48 * (64 + 16)
