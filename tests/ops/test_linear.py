"""noble_fx::linear against the eager maths in float64, and as a good citizen of PyTorch."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from noble_fx.schema import LINEAR
from tests.fused_layer import arguments, eagerly, small_layer
from tests.fuzz.budget import fuzzed
from tests.samples import crossed

ACTS = ["cosnet", "cosnet_double", "identity", "gelu_net", "swiglu", "silu_scale", "leaky_relu"]


@pytest.mark.parametrize("act", ACTS)
def test_opcheck(act):
    layer = small_layer(act)
    torch.library.opcheck(LINEAR, arguments(layer, torch.randn(2, 3, 9, requires_grad=True)))


@pytest.mark.parametrize(("bias", "preset"), crossed([True, False], ["paper", "reference"]))
def test_opcheck_of_the_inner_operators(bias, preset):
    layer = small_layer(bias=bias, preset=preset).requires_grad_(False)
    x, weight, bias_, down, down_bias, up, act, key = arguments(layer, torch.randn(2, 3, 9))
    torch.library.opcheck(torch.ops.noble_fx.linear_forward, (x, weight, bias_, down, down_bias, up, act, key))
    needs = [True, True, bias, True, down_bias is not None, True, *[True] * len(act)]
    h, dy = torch.randn(2, 3, 4), torch.randn(2, 3, 7)
    torch.library.opcheck(torch.ops.noble_fx.linear_backward, (dy, x, h, weight, down, up, act, key, needs))


@pytest.mark.parametrize(("act", "bias"), crossed(ACTS, [True, False]))
def test_gradcheck_once_and_twice(act, bias):
    layer = small_layer(act, 5, 4, 3, bias=bias).double()
    x = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    _, weight, bias_, down, down_bias, up, act_tensors, key = arguments(layer, x)
    fixed = [t for t in (x, weight, bias_, down, down_bias, up, *act_tensors) if t is not None]

    def call(*tensors: Tensor) -> Tensor:
        given = iter(tensors)
        six = [None if t is None else next(given) for t in (x, weight, bias_, down, down_bias, up)]
        return LINEAR(*six, list(given), key)

    assert torch.autograd.gradcheck(call, fixed)
    assert torch.autograd.gradgradcheck(call, fixed)


@fuzzed(20, cost=10)
@given(
    batch=st.lists(st.integers(0, 4), min_size=0, max_size=3),
    sizes=st.tuples(st.integers(2, 12), st.integers(2, 12)),
    rank=st.sampled_from([1, 2, 3, 7]),
    act=st.sampled_from(["cosnet", "swiglu", "gelu_scale"]),
    bias=st.booleans(),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    strided=st.booleans(),
)
def test_any_shape_and_dtype_against_float64(batch, sizes, rank, act, bias, dtype, strided):
    layer = small_layer(act, *sizes, rank, bias=bias)
    x = torch.randn(*batch, sizes[0])
    if strided and x.ndim > 1:
        x = torch.randn(*batch[:-1], sizes[0], batch[-1]).transpose(-1, -2)
    layer, x = layer.to(dtype), x.to(dtype)
    exact, found = small_layer(act, *sizes, rank, bias=bias), x.detach().requires_grad_()
    exact.load_state_dict(layer.state_dict())
    exact = exact.double()
    x64 = x.detach().double().requires_grad_()
    y, truth = layer(found), eagerly(exact, x64)
    assert y.shape == truth.shape
    assert y.dtype == dtype
    dy = torch.randn(truth.shape).to(dtype)
    y.backward(dy)
    truth.backward(dy.double())
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 0.15, torch.float16: 0.03}[dtype]
    pairs = [(y, truth), (found.grad, x64.grad)]
    pairs += [(p.grad, q.grad) for p, q in zip(layer.parameters(), exact.parameters(), strict=True)]
    for one, other in pairs:
        scale = max(1.0, other.abs().max().item()) if other.numel() else 1.0
        torch.testing.assert_close(one.double(), other, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_values_propagate_as_in_eager(bad):
    layer, x = small_layer("gelu"), torch.randn(4, 9)
    x[1, 2] = bad
    torch.testing.assert_close(layer(x), eagerly(layer, x), equal_nan=True)
    assert torch.isfinite(layer(x)[[0, 2, 3]]).all()


def test_compiled_with_inductor():
    layer, x = small_layer(), torch.randn(6, 9)
    compiled = torch.compile(layer, fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))
    found = torch.autograd.grad(compiled(x).square().sum(), list(layer.parameters()))
    wanted = torch.autograd.grad(layer(x).square().sum(), list(layer.parameters()))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


def test_the_package_registers_one_operator_per_purpose():
    assert {name for name in dir(torch.ops.noble_fx) if name.startswith("linear")} == {
        f"{operator}{purpose}" for operator in ("linear", "linear_group") for purpose in ("", "_forward", "_backward")
    }


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_h_is_kept_in_float32_or_better(dtype):
    layer, x = small_layer().to(dtype), torch.randn(2, 3, 9, dtype=dtype)
    with torch.no_grad():
        y, h = torch.ops.noble_fx.linear_forward(*arguments(layer, x))
    assert y.dtype == dtype
    assert h.dtype == torch.promote_types(dtype, torch.float32)
    torch.library.opcheck(torch.ops.noble_fx.linear_forward, arguments(layer.requires_grad_(False), x))
