"""A layer's kernels by the names of its tensors: every variant, against autograd in float64 on a CPU."""

import os
from itertools import product

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from noble_fx.branches.keys import activation_key
from noble_fx.codegen.plan import Layer
from noble_fx.errors import KernelError
from noble_fx.runtime.autotune import Variant
from noble_fx.runtime.call import Call
from noble_fx.runtime.execute import Executor
from noble_fx.runtime.layer_kernels import FIRST, KERNEL, VENDOR, LayerKernels, layer_kernels

pytest.importorskip("triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # as conftest.py sets it where there is no GPU
pytestmark = pytest.mark.skipif(not INTERPRETED, reason="kernels are not interpreted here: tests/gpu compiles them")

K, RANK, ROWS = 40, 12, 37
BOTH, INPUTS = (KERNEL, VENDOR), (KERNEL, VENDOR, FIRST)


class Scale(torch.nn.Module):
    """σ(h) = tanh(s ⊙ h)."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(RANK))

    def forward(self, h: Tensor) -> Tensor:
        return torch.tanh(h * self.scale)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NOBLE_FX_CACHE", str(tmp_path))


def kernels_of(*outs: int, in_features: int = K, dtype: torch.dtype = torch.float32) -> LayerKernels:
    key = activation_key(Scale(), "scale", RANK)
    layer = Layer(in_features, outs, RANK, key, dtype, dtype, bias=True, down_bias=True)
    return layer_kernels(layer, "interpreter", 1 << 16, False)


def run(kernels: LayerKernels, call: Call, operands: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a call answers, by name."""
    rows = len(operands["x"])
    results = Executor(kernels.plan, call, rows, torch.device("cpu"))([operands[name] for name in call.operands])
    return dict(zip(call.results, results, strict=True))


def forward(kernels: LayerKernels, operands: dict[str, Tensor], variant: Variant) -> tuple[list[Tensor], Tensor]:
    results = run(kernels, kernels.forward(operands, variant), operands)
    return [results[kernels.layer.name("y", site)] for site in kernels.sites], results["h"]


def backward(
    kernels: LayerKernels,
    dy: list[Tensor],
    h: Tensor,
    operands: dict[str, Tensor],
    needs: dict[str, bool],
    variant: Variant,
) -> dict[str, Tensor]:
    given = operands | {kernels.layer.name("dy", site): dy[site] for site in kernels.sites} | {"h": h}
    return run(kernels, kernels.backward(given, needs, variant), given)


def operands_of(kernels: LayerKernels) -> dict[str, Tensor]:
    torch.manual_seed(0)
    operands = {"x": torch.randn(ROWS, K)}
    for site, columns in enumerate(kernels.layer.out_features):
        shapes = {"weight": (columns, K), "bias": (columns,), "down": (RANK, K), "down_bias": (RANK,)}
        shapes |= {"up": (columns, RANK), "act_scale": (RANK,)}
        operands |= {kernels.layer.name(name, site): torch.randn(shape) for name, shape in shapes.items()}
    return operands


def truth(kernels: LayerKernels, operands: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """y and h of each site."""
    y, h = [], []
    for site in range(kernels.layer.sites):
        names = ("weight", "bias", "down", "down_bias", "up", "act_scale")
        weight, bias, down, down_bias, up, scale = (operands[kernels.layer.name(name, site)] for name in names)
        h.append(F.linear(operands["x"], down, down_bias))
        y.append(F.linear(operands["x"], weight, bias) + torch.tanh(h[-1] * scale) @ up.t())
    return y, h


@pytest.mark.parametrize("outs", [(72,), (48, 24)])
@pytest.mark.parametrize("variant", [(KERNEL,), (VENDOR,), (FIRST,)])
def test_forward(outs, variant):
    kernels = kernels_of(*outs)
    operands = operands_of(kernels)
    y, h = forward(kernels, operands, variant)
    expected_y, expected_h = truth(kernels, operands)
    torch.testing.assert_close(y, expected_y, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(list(h.view(kernels.layer.sites, ROWS, RANK)), expected_h, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("outs", [(72,), (48, 24)])
@pytest.mark.parametrize("variant", list(product(INPUTS, BOTH)))
def test_backward(outs, variant):
    kernels = kernels_of(*outs)
    operands = operands_of(kernels)
    exact = {name: tensor.double().requires_grad_() for name, tensor in operands.items()}
    y, _ = truth(kernels, exact)
    dy = [torch.randn(tensor.shape) for tensor in y]
    torch.autograd.backward(y, [tensor.double() for tensor in dy])
    _, h = forward(kernels, operands, (VENDOR,))
    gradients = backward(kernels, dy, h, operands, dict.fromkeys(operands, True), variant)
    assert set(gradients) == set(operands)
    for name, gradient in gradients.items():
        expected = exact[name].grad
        size = max(1.0, expected.abs().max().item())
        torch.testing.assert_close(gradient.double(), expected, rtol=0, atol=1e-4 * size, msg=name)


@pytest.mark.parametrize("needed", ["x", "weight", "bias", "down", "down_bias", "up", "act_scale"])
def test_only_what_is_needed_is_answered(needed):
    kernels = kernels_of(72)
    operands = operands_of(kernels)
    _, h = forward(kernels, operands, (VENDOR,))
    needs = {name: name == needed for name in operands}
    dy = [torch.randn(ROWS, 72)]
    gradients = backward(kernels, dy, h, operands, needs, (VENDOR, KERNEL))
    assert list(gradients) == [needed]
    every = backward(kernels, dy, h, operands, dict.fromkeys(operands, True), (VENDOR, KERNEL))
    torch.testing.assert_close(gradients[needed], every[needed])


def test_a_bias_that_is_absent_has_no_name():
    key = activation_key(Scale(), "scale", RANK)
    layer = Layer(K, (72,), RANK, key, torch.float32, torch.float32, bias=False, down_bias=False)
    kernels = layer_kernels(layer, "interpreter", 1 << 16, False)
    operands = {name: tensor for name, tensor in operands_of(kernels).items() if "bias" not in name}
    for variant in [(KERNEL,), (VENDOR,), (FIRST,)]:
        (y,), _ = forward(kernels, operands, variant)
        zeros = {"bias": torch.zeros(72), "down_bias": torch.zeros(RANK)}
        torch.testing.assert_close([y], truth(kernels, operands | zeros)[0], rtol=1e-4, atol=1e-4)


def test_the_operands_are_not_changed():
    kernels = kernels_of(72)
    operands = operands_of(kernels)
    before = {name: tensor.clone() for name, tensor in operands.items()}
    _, h = forward(kernels, operands, (KERNEL,))
    backward(kernels, [torch.randn(ROWS, 72)], h, operands, dict.fromkeys(operands, True), (KERNEL, KERNEL))
    assert set(operands) == set(before)
    assert all(torch.equal(tensor, before[name]) for name, tensor in operands.items())


def test_without_needs_for_x_or_the_narrow_matrices_there_is_nothing_to_choose():
    kernels = kernels_of(72)
    needs = dict.fromkeys(operands_of(kernels), True)
    variants, default = kernels.backward_variants(needs)
    assert set(variants) == set(product(INPUTS, BOTH))
    assert default in variants
    assert kernels.backward_variants(needs | {"x": False})[0] == [(VENDOR, VENDOR), (VENDOR, KERNEL)]
    alone = dict.fromkeys(needs, False) | {"weight": True}
    assert kernels.backward_variants(alone) == ([(VENDOR, VENDOR)], (VENDOR, VENDOR))


@pytest.mark.parametrize(
    ("in_features", "dtype", "default"),
    [
        (64, torch.bfloat16, KERNEL),
        (2048, torch.bfloat16, KERNEL),
        (2064, torch.bfloat16, VENDOR),
        (64, torch.float32, VENDOR),
    ],
)
def test_the_default_is_the_kernel_where_the_product_is_shallow_and_in_low_precision(in_features, dtype, default):
    variants, chosen = kernels_of(64, in_features=in_features, dtype=dtype).forward_variants()
    assert variants == [(KERNEL,), (VENDOR,), (FIRST,)]
    assert chosen == (default,)


def test_a_layer_that_has_no_kernels_says_why():
    with pytest.raises(KernelError, match="float64"):
        kernels_of(64, dtype=torch.float64)
