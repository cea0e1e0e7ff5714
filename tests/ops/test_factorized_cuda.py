"""The kernels of a factorized layer against the eager maths in float64: on a CPU under Triton's interpreter."""

import os
from collections.abc import Iterator

import pytest
import torch

from noble_fx.ops import available, factorized_cuda
from noble_fx.ops.factorized import eager_factorized
from noble_fx.runtime.layer_kernels import KERNEL, VENDOR
from tests.factorized_layer import arguments, check, factorized_layer, take, wide
from tests.fused_layer import TOLERANCE, kernels_on_cpu, near

pytest.importorskip("triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # as conftest.py sets it where there is no GPU
pytestmark = pytest.mark.skipif(not INTERPRETED, reason="kernels are not interpreted here: tests/gpu compiles them")

SIZES = {"in_features": 40, "out_features": 72, "rank": 12, "base_rank": 24}


@pytest.fixture(autouse=True)
def on_cpu(tmp_path) -> Iterator[list[str]]:
    """CPU tensors take the CUDA side's code; yields the kernels that were launched."""
    with kernels_on_cpu(tmp_path) as launched, torch.library._scoped_library("noble_fx", "IMPL") as library:
        factorized_cuda.register(library, "CPU")
        yield launched


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(("product", "weights"), [(KERNEL, KERNEL), (VENDOR, VENDOR)])
def test_every_variant_and_dtype(monkeypatch, product, weights, dtype, on_cpu):
    take(monkeypatch, product, weights)
    check(factorized_layer(**SIZES).to(dtype), torch.randn(50, 40).to(dtype))
    assert ("linear_up_forward" in on_cpu) == (product == KERNEL)
    assert ("linear_backward_input" in on_cpu) == (product == KERNEL)
    assert "bottleneck_forward" in on_cpu


@pytest.mark.parametrize("act", ["identity", "swiglu", "gelu_net"])
@pytest.mark.parametrize("bias", [True, False])
def test_activations_with_and_without_biases(act, bias):
    check(factorized_layer(act, **SIZES, bias=bias, preset="paper"), torch.randn(2, 17, 40))


def test_a_wide_bottleneck_is_split():
    layer = factorized_layer(in_features=160, out_features=176, rank=150, base_rank=64)
    check(layer, torch.randn(40, 160))


@pytest.mark.parametrize("frozen", ["base", "noble", "x"])
def test_what_is_frozen_is_not_computed(frozen):
    layer, x = factorized_layer(**SIZES), torch.randn(33, 40)
    if frozen != "x":
        getattr(layer, frozen).requires_grad_(False)
    x = x.requires_grad_(frozen != "x")
    y = layer(x)
    exact = wide(arguments(layer, x))
    truth = eager_factorized(*exact)
    y.sum().backward()
    truth.sum().backward()
    near("y", y, truth)
    for at, (mine, wanted) in enumerate(zip(arguments(layer, x)[:7], exact[:7], strict=True)):
        if mine is not None and mine.requires_grad:
            near(f"operand {at}", mine.grad, wanted.grad)
    assert (x.grad is None) == (frozen == "x")


def test_without_gradients_nothing_is_kept(on_cpu):
    layer, x = factorized_layer(**SIZES), torch.randn(5, 40)
    with torch.no_grad():
        near("y", layer(x), eager_factorized(*wide(arguments(layer, x))))
    assert on_cpu


def test_what_has_no_kernel_runs_pytorchs_operators(on_cpu):
    check(factorized_layer(in_features=600, out_features=620, rank=300, base_rank=16), torch.randn(3, 600))
    assert not on_cpu


def test_a_layer_that_was_refused_runs_pytorchs_operators(on_cpu, monkeypatch):
    layer, x = factorized_layer(**SIZES), torch.randn(5, 40)
    monkeypatch.setattr(available, "is_refused", lambda *asked: True)
    check(layer, x)
    assert not on_cpu
