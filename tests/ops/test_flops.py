"""PyTorch's counter of FLOPs sees the products inside the operators, in whatever way a model runs them."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import noble_fx
from noble_fx.schema import LINEAR, LINEAR_GROUP
from tests.fused_layer import arguments, group_arguments, layer_of, small_layers

S, K, N, R = 5, 40, 72, 12
ONCE = 2 * S * (K * N + K * R + R * R + R * N)  # CosNet has one mixer


def counted(function) -> int:
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("capture", ["modules", "fx", "export"])
def test_a_model_in_every_capture(capture, grad):
    x = torch.randn(S, K)
    inputs = {"example_inputs": x} if capture == "export" else {}
    model = noble_fx.transform(nn.Sequential(nn.Linear(K, N)), rank=R, capture=capture, **inputs)
    folded = noble_fx.fold(model)
    with torch.set_grad_enabled(grad):
        assert counted(lambda: model(x)) == ONCE
        assert counted(lambda: folded(x)) == ONCE


def test_backward_counts_what_it_computes_again():
    layer, x = layer_of(), torch.randn(S, K, requires_grad=True)
    found = counted(lambda: LINEAR(*arguments(layer, x)).sum().backward())
    assert found == 3 * ONCE + 2 * S * R * R


def test_a_group_counts_as_its_sites_do():
    layers, x = small_layers(), torch.randn(S, 9)
    sites = 2 * S * sum(9 * n + 9 * 3 + 3 * 3 + 3 * n for n in (7, 4, 4))
    assert counted(lambda: LINEAR_GROUP(*group_arguments(layers, x))) == sites
    with torch.no_grad():
        assert counted(lambda: LINEAR_GROUP(*group_arguments(layers, x))) == sites
