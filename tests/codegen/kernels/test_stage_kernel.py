"""One stage of σ as a kernel: which tiles of channels a program holds, what it reads and writes."""

import pytest
import torch

from noble_fx.codegen.kernels.stage_kernel import stage_kernel
from noble_fx.codegen.kernels.stages import backward_steps, forward_steps
from noble_fx.codegen.plan import make_plan
from noble_fx.runtime.launch import launch
from tests.codegen.one_layer import branch_of, layer_of, near


@pytest.mark.parametrize("columns", [(24,), (24, 40)])
def test_a_stage_without_products_walks_over_tiles_of_channels(columns):
    branches = [branch_of("cosnet", 200, width) for width in columns]
    layer = layer_of(branches)
    plan = make_plan(layer, "interpreter")
    first, *_ = forward_steps(layer).stages
    kernel = stage_kernel(plan, first)
    assert kernel.blocks == 4 * len(columns)  # 200 channels are four tiles of 64
    ((_, name, width),) = first.stores
    tensors = {}
    for site, branch in enumerate(branches):
        h = torch.randn(45, 200)
        tensors |= {layer.name("h", site): h, layer.name(name, site): torch.full((45, width), torch.nan)}
        for act, parameter in branch.act.named_parameters():
            tensors[layer.name(f"act_{act.replace('.', '_')}", site)] = parameter.detach()
    launch(plan, kernel, 45, tensors)
    for site in range(len(columns)):
        h, omega, phi = (tensors[layer.name(n, site)].double() for n in ("h", *first.inputs[1:]))
        near(name, tensors[layer.name(name, site)], torch.cos(omega * h + phi), torch.float32)


def test_a_header_says_which_graph_a_stage_is_of():
    layer = layer_of([branch_of("cosnet", 200)])
    plan, steps = make_plan(layer), backward_steps(make_plan(layer))
    assert "one stage of σ at h: t" in stage_kernel(plan, forward_steps(layer).stages[-1]).source
    backward = stage_kernel(plan, steps.stages[-1], steps.width)
    assert "one stage of σ's vjp at h: dh, d_down_bias" in backward.source
    assert f"partials [row tiles, {steps.width}]" in backward.source
