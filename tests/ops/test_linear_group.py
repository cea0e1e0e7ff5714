"""noble_fx::linear_group against the eager maths in float64, each site for itself, and as a good citizen of PyTorch."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from noble_fx.schema import LINEAR_GROUP
from tests.fused_layer import eagerly_each, group_arguments, small_layers
from tests.fuzz.budget import fuzzed
from tests.samples import crossed

INNER = torch.ops.noble_fx
ACTS = ["cosnet", "identity", "swiglu", "silu_scale"]


@pytest.mark.parametrize(("act", "bias"), crossed(ACTS, [True, False]))
def test_opcheck(act, bias):
    layers = small_layers(act, bias=bias, preset="reference" if bias else "paper")
    torch.library.opcheck(LINEAR_GROUP, group_arguments(layers, torch.randn(2, 3, 9, requires_grad=True)))


@pytest.mark.parametrize(("bias", "preset"), crossed([True, False], ["paper", "reference"]))
def test_opcheck_of_the_inner_operators(bias, preset):
    layers = small_layers(bias=bias, preset=preset).requires_grad_(False)
    inputs = group_arguments(layers, torch.randn(2, 3, 9))
    x, weight, _, down, down_bias, up, act, key = inputs
    torch.library.opcheck(INNER.linear_group_forward, inputs)
    y, h = INNER.linear_group_forward(*inputs)
    assert h.shape == (3, 2, 3, 3)
    assert h.is_contiguous()
    needs = [True, *[True] * 3, *[bias] * 3, *[True] * 3, *[bool(down_bias)] * 3, *[True] * 3, *[True] * len(act)]
    dy = [torch.randn_like(one) for one in y]
    torch.library.opcheck(INNER.linear_group_backward, (dy, x, h, weight, down, up, act, key, needs))


def test_a_gradient_stands_where_its_input_does_whatever_is_absent():
    layers = small_layers(bias=False).requires_grad_(False)
    x, weight, _, down, down_bias, up, act, key = inputs = group_arguments(layers, torch.randn(5, 9))
    y, h = INNER.linear_group_forward(*inputs)
    needs = [False] * (1 + 5 * 3 + len(act))
    needs[1 + 3 * 3] = needs[1 + 4 * 3 + 2] = True  # the first site's d, the last one's U
    found = INNER.linear_group_backward([torch.ones_like(one) for one in y], x, h, weight, down, up, act, key, needs)
    assert [i for i, gradient in enumerate(found) if gradient.numel()] == [10, 15]
    assert found[10].shape == down_bias[0].shape
    assert found[15].shape == up[2].shape


@pytest.mark.parametrize(("act", "bias"), crossed(ACTS, [True, False]))
def test_gradcheck_once_and_twice(act, bias):
    layers = small_layers(act, 4, (3, 2), 2, bias=bias).double()
    x = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    inputs = group_arguments(layers, x)
    sizes = [len(one) for one in inputs[1:7]]

    def call(x: Tensor, *tensors: Tensor) -> list[Tensor]:
        given = iter(tensors)
        return LINEAR_GROUP(x, *([next(given) for _ in range(size)] for size in sizes), inputs[-1])

    tensors = (x, *(tensor for one in inputs[1:7] for tensor in one))
    assert torch.autograd.gradcheck(call, tensors)
    assert torch.autograd.gradgradcheck(call, tensors)


@fuzzed(15, cost=10)
@given(
    batch=st.lists(st.integers(0, 4), min_size=0, max_size=2),
    outs=st.lists(st.integers(2, 9), min_size=1, max_size=4),
    rank=st.sampled_from([1, 2, 5]),
    act=st.sampled_from(["cosnet", "swiglu", "gelu_scale"]),
    bias=st.booleans(),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
)
def test_any_shape_and_dtype_against_float64(batch, outs, rank, act, bias, dtype):
    layers = small_layers(act, 6, outs, rank, bias=bias)
    exact = small_layers(act, 6, outs, rank, bias=bias)
    x = torch.randn(*batch, 6).to(dtype)
    exact.load_state_dict(layers.to(dtype).state_dict())
    exact, x64, x = exact.double(), x.double().requires_grad_(), x.requires_grad_()
    found, truth = LINEAR_GROUP(*group_arguments(layers, x)), eagerly_each(exact, x64)
    assert all(y.dtype == dtype for y in found)
    dy = [torch.randn(y.shape).to(dtype) for y in truth]
    torch.autograd.backward(found, dy)
    torch.autograd.backward(truth, [one.double() for one in dy])
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 0.15, torch.float16: 0.03}[dtype]
    pairs = [*zip(found, truth, strict=True), (x.grad, x64.grad)]
    pairs += [(p.grad, q.grad) for p, q in zip(layers.parameters(), exact.parameters(), strict=True)]
    for one, other in pairs:
        scale = max(1.0, other.abs().max().item()) if other.numel() else 1.0
        torch.testing.assert_close(one.double(), other, rtol=0, atol=tolerance * scale)


def test_each_site_is_what_it_is_alone_bit_for_bit():
    layers, x = small_layers(), torch.randn(6, 9)
    for y, layer in zip(LINEAR_GROUP(*group_arguments(layers, x)), layers, strict=True):
        assert torch.equal(y, layer(x))


def test_functional_transforms():
    layers, x = small_layers(), torch.randn(3, 9)

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        call = torch.func.functional_call(Grouped(layers), {f"layers.{k}": v for k, v in parameters.items()}, (x,))
        return sum(y.square().sum() for y in call)

    found = torch.func.grad(loss)(dict(layers.named_parameters()))
    sum(layer(x).square().sum() for layer in layers).backward()
    for name, parameter in layers.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad)


class Grouped(nn.Module):
    """Layers of one input as one call."""

    def __init__(self, layers: nn.ModuleList):
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor) -> list[Tensor]:
        return LINEAR_GROUP(*group_arguments(self.layers, x))


def test_compiled_with_inductor():
    torch._dynamo.reset()
    layers, x = small_layers(), torch.randn(6, 9, requires_grad=True)
    grads = []
    for model in (torch.compile(Grouped(layers), fullgraph=True), Grouped(layers)):
        y = model(x)
        loss = y[0].square().sum() + y[2].square().sum()
        grads.append(torch.autograd.grad(loss, [x, *layers[0].parameters(), *layers[2].parameters()]))
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)
