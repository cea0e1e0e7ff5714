"""Autograd and autocast of both operators: what is kept, what gets a gradient, and in which precision."""

import pytest
import torch
from torch import Tensor

from noble_fx.schema import LINEAR_GROUP
from tests.fused_layer import eagerly, eagerly_each, group_arguments, small_layer, small_layers
from tests.models import Idle


def test_only_x_and_h_are_saved_beside_the_parameters():
    layer = small_layer()
    x = torch.randn(11, 9, requires_grad=True)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        layer(x)
    parameters = {p.data_ptr() for p in layer.parameters()}
    own = [tuple(t.shape) for t in saved if t.data_ptr() not in parameters]
    assert own == [(11, 9), (11, 4)]


def test_frozen_parts_get_no_gradient():
    layer = small_layer()
    layer.weight.requires_grad_(False)
    layer.noble.down.requires_grad_(False)
    layer(torch.randn(3, 9)).sum().backward()
    assert layer.weight.grad is None
    assert layer.noble.down.grad is None
    assert layer.bias.grad is not None
    assert all(p.grad is not None for p in layer.noble.act.parameters())


@pytest.mark.parametrize("again", [False, True])
def test_parameters_that_an_activation_does_not_use_get_none(again):
    layer = small_layer(Idle)
    layer(torch.randn(3, 9)).square().sum().backward(create_graph=again)
    assert {name for name, p in layer.noble.act.named_parameters() if p.grad is None} == {"spare", "read"}


def test_and_those_of_one_of_several_layers_too():
    layers = small_layers(Idle)
    y = LINEAR_GROUP(*group_arguments(layers, torch.randn(3, 9)))
    (y[0].sum() + y[2].sum()).backward()
    given = [{name for name, p in layer.noble.act.named_parameters() if p.grad is not None} for layer in layers]
    assert given == [{"gain", "mixer"}, set(), {"gain", "mixer"}]


def test_nothing_is_recorded_without_gradients():
    layer = small_layer()
    with torch.no_grad():
        assert not layer(torch.randn(3, 9)).requires_grad
    with torch.inference_mode():
        found = layer(torch.randn(3, 9))
    assert found.is_inference()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_that_of_the_eager_branch(dtype):
    layer = small_layer("cosnet", 32, 24, 8)
    x = torch.randn(16, 32)
    grads = []
    with torch.autocast("cpu", dtype=dtype):
        fused, plain = layer(x), eagerly(layer, x)
    assert fused.dtype == plain.dtype == dtype
    torch.testing.assert_close(fused, plain, rtol=0, atol=4 * torch.finfo(dtype).eps * plain.abs().max().item())
    for y in (fused, plain):
        grads.append(torch.autograd.grad(y.float().sum(), list(layer.parameters())))
    for one, other in zip(*grads, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=0, atol=8 * torch.finfo(dtype).eps * other.abs().max().item())


@pytest.mark.parametrize("create_graph", [False, True])
def test_backward_inside_autocast_is_that_outside(create_graph):
    layer, x = small_layer("cosnet", 32, 24, 8), torch.randn(16, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
        inside = torch.autograd.grad(y.sum(), list(layer.parameters()), retain_graph=True, create_graph=create_graph)
    outside = torch.autograd.grad(y.sum(), list(layer.parameters()), create_graph=create_graph)
    assert all(torch.equal(one, other) for one, other in zip(inside, outside, strict=True))


def test_autocast_leaves_float64_alone():
    layer = small_layer().double()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(torch.randn(3, 9, dtype=torch.float64)).dtype == torch.float64


def test_functional_transforms():
    layer, x = small_layer(), torch.randn(3, 9)
    state = dict(layer.named_parameters())

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(layer, parameters, (x,)).square().sum()

    found = torch.func.grad(loss)(state)
    layer(x).square().sum().backward()
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad)


def test_backward_on_the_meta_device():
    layer = small_layer().to("meta")
    layer(torch.randn(3, 9, device="meta")).sum().backward()
    assert all(p.grad.shape == p.shape for p in layer.parameters())


class PartlyUsed(torch.nn.Module):
    """A parameter that is not read, one that is only detached, and one that learns."""

    def __init__(self, rank):
        super().__init__()
        self.unread, self.detached, self.used = (torch.nn.Parameter(torch.rand(rank)) for _ in range(3))

    def forward(self, h):
        return torch.tanh(h * self.used) * self.detached.detach()


@pytest.mark.parametrize("twice", [False, True])
def test_parameters_that_sigma_does_not_use_get_no_gradient(twice):
    layer, x = small_layer(PartlyUsed), torch.randn(3, 9)
    assert layer.noble.unfused == ""
    act = layer.noble.act
    wanted = [act.unread, act.detached, act.used]
    for y in (layer(x), eagerly(layer, x)):
        found = torch.autograd.grad(y.square().sum(), wanted, create_graph=twice, allow_unused=True)
        assert [gradient is None for gradient in found] == [True, True, False]


@pytest.mark.parametrize("used", [[0], [0, 2]])
def test_of_a_group_parameters_that_sigma_does_not_use_get_no_gradient(used):
    layers = small_layers(PartlyUsed)
    y = LINEAR_GROUP(*group_arguments(layers, torch.randn(3, 9)))
    sum(y[i].square().sum() for i in used).backward()
    acts = [layers[i].noble.act for i in used]
    assert all(act.unread.grad is None and act.detached.grad is None and act.used.grad is not None for act in acts)


# --- several sites ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("used", [[0], [2], [0, 2], [1, 2]])
@pytest.mark.parametrize("twice", [False, True])
def test_of_a_group_a_result_that_is_not_used_asks_for_no_gradient(used, twice):
    layers, x = small_layers().double(), torch.randn(5, 9, dtype=torch.float64, requires_grad=True)
    grads = []
    for y in (LINEAR_GROUP(*group_arguments(layers, x)), eagerly_each(layers, x)):
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


def test_of_a_group_frozen_parts_get_no_gradient():
    layers = small_layers()
    layers[1].weight.requires_grad_(False)
    layers[2].noble.requires_grad_(False)
    sum(y.sum() for y in LINEAR_GROUP(*group_arguments(layers, torch.randn(3, 9)))).backward()
    assert all((p.grad is not None) == p.requires_grad for p in layers.parameters())


def test_of_a_group_only_x_and_h_are_saved_beside_the_parameters():
    layers, x = small_layers(), torch.randn(11, 9, requires_grad=True)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        LINEAR_GROUP(*group_arguments(layers, x))
    parameters = {p.data_ptr() for p in layers.parameters()}
    assert [tuple(t.shape) for t in saved if t.data_ptr() not in parameters] == [(11, 9), (3, 11, 3)]


def test_of_a_group_autocast_is_that_of_each_site_alone():
    layers, x = small_layers("cosnet", 32, (24, 16), 8), torch.randn(16, 32)
    grads = []
    for y in (lambda: LINEAR_GROUP(*group_arguments(layers, x)), lambda: [layer(x) for layer in layers]):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            made = y()
        assert {one.dtype for one in made} == {torch.bfloat16}
        grads.append(torch.autograd.grad([one.float().sum() for one in made], list(layers.parameters())))
    for one, other in zip(*grads, strict=True):
        assert torch.equal(one, other)
