"""noble_fx::linear_group against the eager maths in float64, each site for itself, and as a good citizen of PyTorch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from noble_fx import NobleLinear
from noble_fx.schema import LINEAR_GROUP

INNER = torch.ops.noble_fx
ACTS = ["cosnet", "identity", "swiglu", "silu_scale"]


def layers_of(act="cosnet", in_features=9, outs=(7, 4, 4), rank=3, bias=True, preset="reference") -> nn.ModuleList:
    """Sites of one input: N differs, as in grouped-query attention."""
    torch.manual_seed(0)
    layers = nn.ModuleList(NobleLinear.build(in_features, n, rank, bias=bias, act=act, preset=preset) for n in outs)
    with torch.no_grad():
        for layer in layers:
            layer.noble.up.normal_()
            layer.noble.unfused = ""
    return layers


def arguments(layers: nn.ModuleList, x: Tensor) -> tuple:
    """What the operator takes for these layers."""
    branches = [layer.noble for layer in layers]
    return (
        x,
        [layer.weight for layer in layers],
        [layer.bias for layer in layers if layer.bias is not None],
        [branch.down for branch in branches],
        [branch.down_bias for branch in branches if branch.down_bias is not None],
        [branch.up for branch in branches],
        [tensor for branch in branches for tensor in branch.act_tensors()],
        branches[0].key,
    )


def eager(layers: nn.ModuleList, x: Tensor) -> list[Tensor]:
    for layer in layers:
        layer.noble.unfused = "eager"
    try:
        return [layer(x) for layer in layers]
    finally:
        for layer in layers:
            layer.noble.unfused = ""


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("bias", [True, False])
def test_opcheck(act, bias):
    layers = layers_of(act, bias=bias, preset="reference" if bias else "paper")
    torch.library.opcheck(LINEAR_GROUP, arguments(layers, torch.randn(2, 3, 9, requires_grad=True)))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("preset", ["paper", "reference"])
def test_opcheck_of_the_inner_operators(bias, preset):
    layers = layers_of(bias=bias, preset=preset).requires_grad_(False)
    inputs = arguments(layers, torch.randn(2, 3, 9))
    x, weight, _, down, down_bias, up, act, key = inputs
    torch.library.opcheck(INNER.linear_group_forward, inputs)
    y, h = INNER.linear_group_forward(*inputs)
    assert h.shape == (3, 2, 3, 3)
    assert h.is_contiguous()
    needs = [True, *[True] * 3, *[bias] * 3, *[True] * 3, *[bool(down_bias)] * 3, *[True] * 3, *[True] * len(act)]
    dy = [torch.randn_like(one) for one in y]
    torch.library.opcheck(INNER.linear_group_backward, (dy, x, h, weight, down, up, act, key, needs))


def test_a_gradient_stands_where_its_input_does_whatever_is_absent():
    layers = layers_of(bias=False).requires_grad_(False)
    x, weight, _, down, down_bias, up, act, key = inputs = arguments(layers, torch.randn(5, 9))
    y, h = INNER.linear_group_forward(*inputs)
    needs = [False] * (1 + 5 * 3 + len(act))
    needs[1 + 3 * 3] = needs[1 + 4 * 3 + 2] = True  # the first site's d, the last one's U
    found = INNER.linear_group_backward([torch.ones_like(one) for one in y], x, h, weight, down, up, act, key, needs)
    assert [i for i, gradient in enumerate(found) if gradient.numel()] == [10, 15]
    assert found[10].shape == down_bias[0].shape
    assert found[15].shape == up[2].shape


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("act", ACTS)
def test_gradcheck_once_and_twice(act, bias):
    layers = layers_of(act, 4, (3, 2), 2, bias=bias).double()
    x = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    inputs = arguments(layers, x)
    sizes = [len(one) for one in inputs[1:7]]

    def call(x: Tensor, *tensors: Tensor) -> list[Tensor]:
        given = iter(tensors)
        return LINEAR_GROUP(x, *([next(given) for _ in range(size)] for size in sizes), inputs[-1])

    tensors = (x, *(tensor for one in inputs[1:7] for tensor in one))
    assert torch.autograd.gradcheck(call, tensors)
    assert torch.autograd.gradgradcheck(call, tensors)


@settings(max_examples=30, deadline=None)
@given(
    batch=st.lists(st.integers(0, 4), min_size=0, max_size=2),
    outs=st.lists(st.integers(2, 9), min_size=1, max_size=4),
    rank=st.sampled_from([1, 2, 5]),
    act=st.sampled_from(["cosnet", "swiglu", "gelu_scale"]),
    bias=st.booleans(),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
)
def test_any_shape_and_dtype_against_float64(batch, outs, rank, act, bias, dtype):
    layers = layers_of(act, 6, outs, rank, bias=bias)
    exact = layers_of(act, 6, outs, rank, bias=bias)
    x = torch.randn(*batch, 6).to(dtype)
    exact.load_state_dict(layers.to(dtype).state_dict())
    exact, x64, x = exact.double(), x.double().requires_grad_(), x.requires_grad_()
    found, truth = LINEAR_GROUP(*arguments(layers, x)), eager(exact, x64)
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
    layers, x = layers_of(), torch.randn(6, 9)
    for y, layer in zip(LINEAR_GROUP(*arguments(layers, x)), layers, strict=True):
        assert torch.equal(y, layer(x))


@pytest.mark.parametrize("used", [[0], [2], [0, 2], [1, 2]])
@pytest.mark.parametrize("twice", [False, True])
def test_a_result_that_is_not_used_asks_for_no_gradient(used, twice):
    layers, x = layers_of().double(), torch.randn(5, 9, dtype=torch.float64, requires_grad=True)
    grads = []
    for y in (LINEAR_GROUP(*arguments(layers, x)), eager(layers, x)):
        loss = sum(y[i].square().sum() for i in used)
        wanted = [x, *layers.parameters()]
        found = torch.autograd.grad(loss, wanted, create_graph=twice, allow_unused=True)
        if twice:
            again = sum(g.square().sum() for g in found if g is not None)
            found = (*found, *torch.autograd.grad(again, wanted, allow_unused=True))
        grads.append(found)
    assert any(g is None for g in grads[0])
    for one, other in zip(*grads, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other)


def test_frozen_parts_get_no_gradient():
    layers = layers_of()
    layers[1].weight.requires_grad_(False)
    layers[2].noble.requires_grad_(False)
    sum(y.sum() for y in LINEAR_GROUP(*arguments(layers, torch.randn(3, 9)))).backward()
    assert all((p.grad is not None) == p.requires_grad for p in layers.parameters())


def test_only_x_and_h_are_saved_beside_the_parameters():
    layers, x = layers_of(), torch.randn(11, 9, requires_grad=True)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        LINEAR_GROUP(*arguments(layers, x))
    parameters = {p.data_ptr() for p in layers.parameters()}
    assert [tuple(t.shape) for t in saved if t.data_ptr() not in parameters] == [(11, 9), (3, 11, 3)]


def test_autocast_is_that_of_each_site_alone():
    layers, x = layers_of("cosnet", 32, (24, 16), 8), torch.randn(16, 32)
    grads = []
    for y in (lambda: LINEAR_GROUP(*arguments(layers, x)), lambda: [layer(x) for layer in layers]):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            made = y()
        assert {one.dtype for one in made} == {torch.bfloat16}
        grads.append(torch.autograd.grad([one.float().sum() for one in made], list(layers.parameters())))
    for one, other in zip(*grads, strict=True):
        assert torch.equal(one, other)


def test_functional_transforms():
    layers, x = layers_of(), torch.randn(3, 9)

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
        return LINEAR_GROUP(*arguments(self.layers, x))


def test_compiled_with_inductor():
    torch._dynamo.reset()
    layers, x = layers_of(), torch.randn(6, 9, requires_grad=True)
    grads = []
    for model in (torch.compile(Grouped(layers), fullgraph=True), Grouped(layers)):
        y = model(x)
        loss = y[0].square().sum() + y[2].square().sum()
        grads.append(torch.autograd.grad(loss, [x, *layers[0].parameters(), *layers[2].parameters()]))
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)
