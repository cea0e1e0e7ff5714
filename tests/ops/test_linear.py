"""noble_fx::linear against the eager maths in float64, and as a good citizen of PyTorch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from noble_fx import NobleLinear
from noble_fx.schema import LINEAR

ACTS = ["cosnet", "cosnet_double", "identity", "gelu_net", "swiglu", "silu_scale", "leaky_relu"]


def layer_of(
    act: str = "cosnet", in_features: int = 9, out_features: int = 7, rank: int = 4, **settings: object
) -> NobleLinear:
    torch.manual_seed(0)
    layer = NobleLinear.build(in_features, out_features, rank, act=act, **{"preset": "reference", **settings})
    with torch.no_grad():
        layer.noble.up.normal_()
    layer.noble.unfused = ""
    return layer


def arguments(layer: NobleLinear, x: Tensor) -> tuple:
    noble = layer.noble
    return x, layer.weight, layer.bias, noble.down, noble.down_bias, noble.up, noble.act_tensors(), noble.key


def eager(layer: NobleLinear, x: Tensor) -> Tensor:
    layer.noble.unfused = "eager"
    try:
        return layer(x)
    finally:
        layer.noble.unfused = ""


@pytest.mark.parametrize("act", ACTS)
def test_opcheck(act):
    layer = layer_of(act)
    torch.library.opcheck(LINEAR, arguments(layer, torch.randn(2, 3, 9, requires_grad=True)))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("preset", ["paper", "reference"])
def test_opcheck_of_the_inner_operators(bias, preset):
    layer = layer_of(bias=bias, preset=preset).requires_grad_(False)
    x, weight, bias_, down, down_bias, up, act, key = arguments(layer, torch.randn(2, 3, 9))
    torch.library.opcheck(torch.ops.noble_fx.linear_forward, (x, weight, bias_, down, down_bias, up, act, key))
    needs = [True, True, bias, True, down_bias is not None, True, *[True] * len(act)]
    h, dy = torch.randn(2, 3, 4), torch.randn(2, 3, 7)
    torch.library.opcheck(torch.ops.noble_fx.linear_backward, (dy, x, h, weight, down, up, act, key, needs))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("act", ACTS)
def test_gradcheck_once_and_twice(act, bias):
    layer = layer_of(act, 5, 4, 3, bias=bias).double()
    x = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    _, weight, bias_, down, down_bias, up, act_tensors, key = arguments(layer, x)
    fixed = [t for t in (x, weight, bias_, down, down_bias, up, *act_tensors) if t is not None]

    def call(*tensors: Tensor) -> Tensor:
        given = iter(tensors)
        six = [None if t is None else next(given) for t in (x, weight, bias_, down, down_bias, up)]
        return LINEAR(*six, list(given), key)

    assert torch.autograd.gradcheck(call, fixed)
    assert torch.autograd.gradgradcheck(call, fixed)


@settings(max_examples=40, deadline=None)
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
    layer = layer_of(act, *sizes, rank, bias=bias)
    x = torch.randn(*batch, sizes[0])
    if strided and x.ndim > 1:
        x = torch.randn(*batch[:-1], sizes[0], batch[-1]).transpose(-1, -2)
    layer, x = layer.to(dtype), x.to(dtype)
    exact, found = layer_of(act, *sizes, rank, bias=bias), x.detach().requires_grad_()
    exact.load_state_dict(layer.state_dict())
    exact = exact.double()
    x64 = x.detach().double().requires_grad_()
    y, truth = layer(found), eager(exact, x64)
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


def test_only_x_and_h_are_saved_beside_the_parameters():
    layer = layer_of()
    x = torch.randn(11, 9, requires_grad=True)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        layer(x)
    parameters = {p.data_ptr() for p in layer.parameters()}
    own = [tuple(t.shape) for t in saved if t.data_ptr() not in parameters]
    assert own == [(11, 9), (11, 4)]


def test_frozen_parts_get_no_gradient():
    layer = layer_of()
    layer.weight.requires_grad_(False)
    layer.noble.down.requires_grad_(False)
    layer(torch.randn(3, 9)).sum().backward()
    assert layer.weight.grad is None
    assert layer.noble.down.grad is None
    assert layer.bias.grad is not None
    assert all(p.grad is not None for p in layer.noble.act.parameters())


def test_nothing_is_recorded_without_gradients():
    layer = layer_of()
    with torch.no_grad():
        assert not layer(torch.randn(3, 9)).requires_grad
    with torch.inference_mode():
        found = layer(torch.randn(3, 9))
    assert found.is_inference()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_that_of_the_eager_branch(dtype):
    layer = layer_of("cosnet", 32, 24, 8)
    x = torch.randn(16, 32)
    grads = []
    with torch.autocast("cpu", dtype=dtype):
        fused, plain = layer(x), eager(layer, x)
    assert fused.dtype == plain.dtype == dtype
    torch.testing.assert_close(fused, plain, rtol=0, atol=4 * torch.finfo(dtype).eps * plain.abs().max().item())
    for y in (fused, plain):
        grads.append(torch.autograd.grad(y.float().sum(), list(layer.parameters())))
    for one, other in zip(*grads, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=0, atol=8 * torch.finfo(dtype).eps * other.abs().max().item())


@pytest.mark.parametrize("create_graph", [False, True])
def test_backward_inside_autocast_is_that_outside(create_graph):
    layer, x = layer_of("cosnet", 32, 24, 8), torch.randn(16, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
        inside = torch.autograd.grad(y.sum(), list(layer.parameters()), retain_graph=True, create_graph=create_graph)
    outside = torch.autograd.grad(y.sum(), list(layer.parameters()), create_graph=create_graph)
    assert all(torch.equal(one, other) for one, other in zip(inside, outside, strict=True))


def test_autocast_leaves_float64_alone():
    layer = layer_of().double()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(torch.randn(3, 9, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_values_propagate_as_in_eager(bad):
    layer, x = layer_of("gelu"), torch.randn(4, 9)
    x[1, 2] = bad
    torch.testing.assert_close(layer(x), eager(layer, x), equal_nan=True)
    assert torch.isfinite(layer(x)[[0, 2, 3]]).all()


def test_functional_transforms():
    layer, x = layer_of(), torch.randn(3, 9)
    state = dict(layer.named_parameters())

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(layer, parameters, (x,)).square().sum()

    found = torch.func.grad(loss)(state)
    layer(x).square().sum().backward()
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad)


def test_compiled_with_inductor():
    layer, x = layer_of(), torch.randn(6, 9)
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
    layer, x = layer_of().to(dtype), torch.randn(2, 3, 9, dtype=dtype)
    with torch.no_grad():
        y, h = torch.ops.noble_fx.linear_forward(*arguments(layer, x))
    assert y.dtype == dtype
    assert h.dtype == torch.promote_types(dtype, torch.float32)
    torch.library.opcheck(torch.ops.noble_fx.linear_forward, arguments(layer.requires_grad_(False), x))


def test_backward_on_the_meta_device():
    layer = layer_of().to("meta")
    layer(torch.randn(3, 9, device="meta")).sum().backward()
    assert all(p.grad.shape == p.shape for p in layer.parameters())
