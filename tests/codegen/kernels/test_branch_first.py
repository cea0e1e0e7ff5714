"""Branch first: y0 and dx0 by the kernels, the main product added to them, against float64."""

import pytest
import torch

from noble_fx.codegen.generate import generate
from noble_fx.codegen.kernels.branch_first import branch_first_kernels
from noble_fx.codegen.kernels.stages import backward_steps
from noble_fx.codegen.plan import make_plan
from noble_fx.runtime.launch import launch
from tests.codegen.one_layer import branch_of, layer_of, near, tensors_of, truth_of


def layer_and_tensors(act, rank, columns, rows, dtype):
    branches = [branch_of(act, rank, width).to(dtype) for width in columns]
    layer = layer_of(branches, dtype, bias=True)
    tensors = tensors_of(layer, branches, rows)
    return layer, tensors, truth_of(layer, branches, tensors)


def empty(*shape, dtype):
    return torch.full(shape, torch.nan, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("act", "rank", "columns"), [("cosnet", 12, (24,)), ("swiglu", 64, (70, 130)), ("cosnet", 100, (64, 24))]
)
def test_forward(act, rank, columns, dtype):
    layer, tensors, truth = layer_and_tensors(act, rank, columns, 45, dtype)
    for site, width in enumerate(columns):
        tensors[layer.name("h", site)] = empty(45, rank, dtype=torch.float32)
        tensors[layer.name("y", site)] = empty(45, width, dtype=dtype)
    plan = make_plan(layer, "interpreter")
    launch(plan, generate(plan)["branch_first_forward"], 45, tensors)
    for site in range(len(columns)):
        name, weight = layer.name("y", site), tensors[layer.name("weight", site)]
        near(name, tensors[name].addmm_(tensors["x"], weight.t()), truth[name], dtype)
        h, down = (tensors[layer.name(tensor, site)].double() for tensor in ("h", "down"))
        bias = tensors[layer.name("down_bias", site)].double()
        near("h", h, tensors["x"].double() @ down.t() + bias, torch.float32 if dtype == torch.float32 else dtype)


def test_forward_of_several_tiles_of_channels():
    """200 channels in 16 bits are held in four tiles, each of which meets its part of U."""
    layer, tensors, truth = layer_and_tensors("cosnet", 200, (24,), 40, torch.bfloat16)
    tensors |= {"h": empty(40, 200, dtype=torch.float32), "y": empty(40, 24, dtype=torch.bfloat16)}
    plan = make_plan(layer, "interpreter")
    launch(plan, generate(plan)["branch_first_forward"], 40, tensors)
    near("y", tensors["y"].addmm_(tensors["x"], tensors["weight"].t()), truth["y"], torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rank", "columns"), [(12, (24,)), (100, (70,)), (12, (24, 70))])
def test_backward(rank, columns, dtype):
    layer, tensors, truth = layer_and_tensors("cosnet", rank, columns, 45, dtype)
    plan, single = make_plan(layer, "interpreter"), len(columns) == 1
    kernels, steps = generate(plan), backward_steps(plan)
    tensors["dx"] = empty(45, layer.in_features, dtype=dtype)
    for site in range(len(columns)):
        down, bias = (tensors[layer.name(name, site)].float() for name in ("down", "down_bias"))
        tensors[layer.name("h", site)] = tensors["x"].float() @ down.t() + bias
        for name in ("t", "dh"):
            tensors[layer.name(name, site)] = empty(45, rank, dtype=dtype)
        programs = -(-45 // plan.bottleneck_backward.rows)
        tensors[layer.name("partials", site)] = empty(programs, steps.width, dtype=torch.float32)
    launch(plan, kernels["branch_first_backward" if single else "bottleneck_backward"], 45, tensors)
    if not single:
        launch(plan, kernels["branch_first_input"], 45, tensors)
    dx = tensors["dx"]
    for site in range(len(columns)):
        dx = dx.addmm_(tensors[layer.name("dy", site)], tensors[layer.name("weight", site)])
    near("dx", dx, truth["dx"], dtype)


def test_what_a_plan_has():
    def names(branches, **settings):
        return [kernel.name for kernel in branch_first_kernels(make_plan(layer_of(branches, **settings)))]

    one = [branch_of("cos", 100)]
    both = ["branch_first_forward", "branch_first_backward", "branch_first_input"]
    assert names([branch_of("cos", 12)]) == both
    assert names([branch_of("cos", 12)] * 2) == ["branch_first_forward", "branch_first_input"]
    assert names(one, dtype=torch.bfloat16) == ["branch_first_forward", "branch_first_input"]  # backward is cut
    assert names(one) == ["branch_first_input"]  # forward too, in float32


def test_one_tile_of_y_is_held_at_once_and_t_never_written():
    kernel = generate(make_plan(layer_of([branch_of("cosnet", 12, 130)])))["branch_first_forward"]
    assert "t_ptr" not in {argument.name for argument in kernel.arguments}
    body = kernel.source[kernel.source.index("def branch_first_forward(") :]
    assert body.count("tl.store(") == 2  # h, and y in the loop
    assert "for start in range(0, 130, 64):" in body
