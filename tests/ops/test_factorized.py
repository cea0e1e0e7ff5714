"""noble_fx::factorized_linear against the eager maths in float64, and as a good citizen of PyTorch."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from noble_fx.ops.factorized import eager_factorized
from noble_fx.schema import FACTORIZED
from tests.factorized_layer import arguments, factorized_layer, leaves, wide
from tests.fuzz.budget import fuzzed
from tests.samples import crossed

ACTS = ["cosnet", "identity", "gelu_net", "swiglu", "silu_scale"]


@pytest.mark.parametrize("act", ACTS)
def test_opcheck(act):
    layer = factorized_layer(act)
    torch.library.opcheck(FACTORIZED, arguments(layer, torch.randn(2, 3, 9, requires_grad=True)))


@pytest.mark.parametrize(("bias", "preset"), crossed([True, False], ["paper", "reference"]))
def test_opcheck_of_the_inner_operators(bias, preset):
    layer = factorized_layer(bias=bias, preset=preset).requires_grad_(False)
    given = arguments(layer, torch.randn(2, 3, 9))
    x, base_down, base_up, bias_, down, down_bias, up, act, key = given
    torch.library.opcheck(torch.ops.noble_fx.factorized_linear_forward, given)
    needs = [True, True, True, bias_ is not None, True, down_bias is not None, True, *[True] * len(act)]
    dy, z, h = torch.randn(2, 3, 7), torch.randn(2, 3, 5), torch.randn(2, 3, 4)
    backward = torch.ops.noble_fx.factorized_linear_backward
    torch.library.opcheck(backward, (dy, x, z, h, base_down, base_up, down, up, act, key, needs))


@pytest.mark.parametrize(("act", "bias"), crossed(ACTS, [True, False]))
def test_gradcheck_once_and_twice(act, bias):
    layer = factorized_layer(act, 5, 4, 3, base_rank=2, bias=bias).double()
    x = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    *fixed, act_tensors, key = arguments(layer, x)
    tensors = [t for t in (*fixed, *act_tensors) if t is not None]

    def call(*moved: Tensor) -> Tensor:
        given = iter(moved)
        seven = [None if t is None else next(given) for t in fixed]
        return FACTORIZED(*seven, list(given), key)

    assert torch.autograd.gradcheck(call, tensors)
    assert torch.autograd.gradgradcheck(call, tensors)


@fuzzed(20, cost=10)
@given(
    batch=st.lists(st.integers(0, 4), min_size=0, max_size=3),
    sizes=st.tuples(st.integers(2, 12), st.integers(2, 12)),
    rank=st.sampled_from([1, 2, 3, 7]),
    base_rank=st.sampled_from([1, 2, 5]),
    act=st.sampled_from(["cosnet", "swiglu", "gelu_scale"]),
    bias=st.booleans(),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
)
def test_any_shape_and_dtype_against_float64(batch, sizes, rank, base_rank, act, bias, dtype):
    layer = factorized_layer(act, *sizes, rank, base_rank=base_rank, bias=bias).to(dtype)
    x = torch.randn(*batch, sizes[0]).to(dtype).requires_grad_()
    exact: list[Any] = [wide(t) for t in arguments(layer, x)]
    y, truth = layer(x), eager_factorized(*exact)
    assert y.shape == truth.shape
    assert y.dtype == dtype
    dy = torch.randn(truth.shape).to(dtype)
    y.backward(dy)
    truth.backward(dy.double())
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 0.15, torch.float16: 0.03}[dtype]
    found, wanted = leaves(arguments(layer, x)), leaves(exact)
    for one, other in [(y, truth), *((a.grad, b.grad) for a, b in zip(found, wanted, strict=True))]:
        scale = max(1.0, other.abs().max().item()) if other.numel() else 1.0
        torch.testing.assert_close(one.double(), other, rtol=0, atol=tolerance * scale)


def test_what_needs_no_gradient_has_none():
    layer = factorized_layer()
    layer.base.requires_grad_(False)
    layer(torch.randn(3, 9)).sum().backward()
    assert layer.base.down.grad is None
    assert layer.noble.down.grad is not None


def kept_beside_parameters(layer, x):
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(x)
    own = {p.data_ptr() for p in layer.parameters()}
    return [tuple(t.shape) for t in kept if t.data_ptr() not in own]


@pytest.mark.parametrize("needs_x", [False, True])
def test_x_is_kept_only_where_a_matrix_that_reads_it_learns(needs_x):
    layer, x = factorized_layer(), torch.randn(11, 9, requires_grad=needs_x)
    assert kept_beside_parameters(layer, x) == [(11, 9), (11, 5), (11, 4)]
    layer.base.down.requires_grad_(False)
    assert kept_beside_parameters(layer, x) == [(11, 9), (11, 5), (11, 4)]
    layer.noble.down.requires_grad_(False)
    assert kept_beside_parameters(layer, x) == [(11, 5), (11, 4)]


@pytest.mark.parametrize(("act", "bias"), crossed(ACTS, [True, False]))
def test_without_x_gradients_are_right_once_and_twice(act, bias):
    layer = factorized_layer(act, 5, 4, 3, base_rank=2, bias=bias).double()
    x = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    *fixed, act_tensors, key = arguments(layer, x)
    frozen = {1: fixed[1].detach(), 4: fixed[4].detach()}  # B and D
    places = [at for at, t in enumerate(fixed) if t is not None and at not in frozen]

    def call(*moved: Tensor) -> Tensor:
        seven = [frozen.get(at) for at in range(len(fixed))]
        for at, tensor in zip(places, moved, strict=False):
            seven[at] = tensor
        return FACTORIZED(*seven, list(moved[len(places) :]), key)

    tensors = [*(fixed[at] for at in places), *act_tensors]
    assert torch.autograd.gradcheck(call, tensors)
    assert torch.autograd.gradgradcheck(call, tensors)


def test_under_autocast_products_run_in_bfloat16():
    layer = factorized_layer()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(torch.randn(3, 9))
    assert y.dtype is torch.bfloat16


def test_torch_func_and_vmap_see_the_eager_maths():
    layer = factorized_layer().double()
    x = torch.randn(4, 9, dtype=torch.float64)
    *rest, act, key = arguments(layer, x)[1:]
    one_by_one = torch.stack([FACTORIZED(row[None], *rest, act, key)[0] for row in x])
    torch.testing.assert_close(torch.vmap(lambda row: FACTORIZED(row, *rest, act, key))(x), one_by_one)
    gradient = torch.func.grad(lambda t: FACTORIZED(t, *rest, act, key).sum())(x)
    x.requires_grad_()
    FACTORIZED(x, *rest, act, key).sum().backward()
    torch.testing.assert_close(gradient, x.grad)


def test_a_layer_is_one_operator_and_takes_no_other_when_it_may_not():
    layer, x = factorized_layer(), torch.randn(3, 9)
    with torch.profiler.profile() as profile, torch.no_grad():
        fused = layer(x)
        hook = layer.base.register_forward_hook(lambda module, args, output: None)
        beside = layer(x)
        hook.remove()
    count = sum(event.count for event in profile.key_averages() if event.key == "noble_fx::factorized_linear")
    assert count <= 1  # called past the dispatcher, or by it
    torch.testing.assert_close(fused, beside)


def test_compiled_it_is_taken_apart_and_the_same():
    layer = factorized_layer()
    x = torch.randn(6, 9)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    y = compiled(x)
    torch.testing.assert_close(y, layer(x))
    y.sum().backward()
    found = [p.grad.clone() for p in layer.parameters()]
    layer.zero_grad()
    layer(x).sum().backward()
    for one, p in zip(found, layer.parameters(), strict=True):
        torch.testing.assert_close(one, p.grad)
