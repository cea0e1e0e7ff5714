"""A nonlinear branch and linear maps as one bottleneck of the operator, in PyTorch operators and in the kernels."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from noble_fx import NobleLinear
from noble_fx.attach.adapters import _join
from noble_fx.branches.adapters import Adapter
from noble_fx.config import NobleConfig
from tests.fused_layer import kernels_on_cpu, layer_of, near, small_layer

ACTS = ["cosnet", "gelu", "swiglu", "identity"]


def beside(layer: NobleLinear, *ranks: int) -> NobleLinear:
    """The layer with adapters of these ranks beside its branch, that matter."""
    for at, rank in enumerate(ranks):
        adapter = Adapter(layer.in_features, layer.out_features, NobleConfig(branch="lora", alpha=2), rank)
        nn.init.normal_(adapter.up)
        _join(layer.noble, f"n{at}", adapter, "")
    assert layer.noble.unfused == ""
    return layer


def is_fused(layer: NobleLinear) -> bool:
    noble = layer.noble
    x = torch.randn(5, layer.in_features, dtype=layer.weight.dtype)
    return noble.bound is not None and noble.bound.operands(noble, x, layer.weight.shape) is not None


def by_modules(layer: NobleLinear, x: torch.Tensor) -> torch.Tensor:
    return F.linear(x, layer.weight, layer.bias) + layer.noble(x)


@pytest.mark.parametrize("preset", ["paper", "reference"])
@pytest.mark.parametrize("ranks", [(2,), (1, 3)])
@pytest.mark.parametrize("act", ACTS)
def test_the_operator_and_the_modules_agree(act, ranks, preset):
    layer = beside(small_layer(act, preset=preset).double(), *ranks)
    x = torch.randn(6, 9, dtype=torch.float64)
    assert is_fused(layer)
    torch.testing.assert_close(layer(x), by_modules(layer, x), rtol=1e-12, atol=1e-12)
    layer.noble.adapters.weigh({"n0": 0.5})
    assert is_fused(layer)
    torch.testing.assert_close(layer(x), by_modules(layer, x), rtol=1e-12, atol=1e-12)


def test_gradients_once_and_twice():
    layer = beside(small_layer().double(), 2)
    x = torch.randn(3, 9, dtype=torch.float64, requires_grad=True)
    named = dict(layer.named_parameters())

    def call(x, *values):
        return torch.func.functional_call(layer, dict(zip(named, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(call, (x, *named.values()))
    assert torch.autograd.gradgradcheck(layer, (x,))


def test_x_is_not_kept_where_nothing_needs_it():
    layer, x = beside(small_layer(), 2), torch.randn(64, 9, requires_grad=True)
    layer.requires_grad_(False)
    layer.noble.adapters.n0.up.requires_grad_(True)
    rows = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: rows.append(tuple(t.shape)) or t, lambda t: t):
        y = layer(x)
    assert (64, 6) in rows
    assert (64, 9) not in rows
    y.sum().backward()
    exact = copy.deepcopy(layer).double()
    by_modules(exact, x.detach().double()).sum().backward()
    near("up", layer.noble.adapters.n0.up.grad, exact.noble.adapters.n0.up.grad)


def test_dropout_and_hooks_run_the_modules():
    layer = beside(small_layer(), 2)
    adapters = layer.noble.adapters
    adapters.n0.dropout = 0.5
    assert not is_fused(layer.train())
    assert is_fused(layer.eval())
    handle = adapters.register_forward_hook(lambda module, args, out: 0 * out)
    assert not is_fused(layer)
    handle.remove()
    assert is_fused(layer)


@pytest.mark.parametrize("act", ["cosnet", "gelu"])
@pytest.mark.parametrize(("rank", "ranks"), [(12, (4,)), (16, (8, 3))])
def test_the_generated_kernels(act, rank, ranks, tmp_path):
    """y and every gradient under Triton's interpreter, against the modules in float64."""
    layer = beside(layer_of(act, rank=rank), *ranks)
    exact = copy.deepcopy(layer).double()
    x = torch.randn(33, 40, requires_grad=True)
    x64 = x.detach().double().requires_grad_()
    dy = torch.randn(33, 72)
    truth = by_modules(exact, x64)
    truth.backward(dy.double())
    with kernels_on_cpu(tmp_path) as launched:
        y = layer(x)
        y.backward(dy)
    assert "bottleneck_forward" in launched
    assert "bottleneck_backward" in launched
    near("y", y, truth)
    near("dx", x.grad, x64.grad)
    for (name, parameter), wanted in zip(layer.named_parameters(), exact.parameters(), strict=True):
        near(name, parameter.grad, wanted.grad, scale=2.0)
