"""Sites whose W and D do not learn: x is not kept, and their gradients are those of the eager maths, twice over."""

import pytest
import torch
from torch import Tensor, nn

import noble_fx
from noble_fx.ops import frozen
from noble_fx.ops.operands import Operands
from noble_fx.schema import LINEAR_GROUP
from tests.fused_layer import eagerly, eagerly_each, group_arguments, small_layer, small_layers


def frozen_layer(*, down: bool = False, weight: bool = False, **kwargs) -> nn.Module:
    layer = small_layer(**kwargs)
    layer.weight.requires_grad_(weight)
    layer.noble.down.requires_grad_(down)
    return layer


def saved_beside_parameters(layer: nn.Module, run) -> list[tuple[int, ...]]:
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        run()
    parameters = {p.data_ptr() for p in layer.parameters()}
    return [tuple(t.shape) for t in saved if t.data_ptr() not in parameters]


@pytest.mark.parametrize(("learns", "kept"), [({}, [(11, 4)]), ({"down": True}, [(11, 9), (11, 4)])])
@pytest.mark.parametrize("needs_x", [False, True])
def test_h_alone_is_kept_where_w_and_d_are_frozen(learns, kept, needs_x):
    layer, x = frozen_layer(**learns), torch.randn(11, 9, requires_grad=needs_x)
    assert saved_beside_parameters(layer, lambda: layer(x)) == kept


def test_and_of_a_group_where_all_are():
    layers, x = small_layers(), torch.randn(11, 9)
    for layer in layers:
        layer.weight.requires_grad_(False)
        layer.noble.down.requires_grad_(False)
    run = lambda: LINEAR_GROUP(*group_arguments(layers, x))  # noqa: E731
    assert saved_beside_parameters(layers, run) == [(3, 11, 3)]
    layers[1].weight.requires_grad_(True)
    assert saved_beside_parameters(layers, run) == [(11, 9), (3, 11, 3)]


def test_a_whole_model_that_trains_no_matrices_keeps_no_input():
    torch.manual_seed(0)
    model = noble_fx.transform(nn.Sequential(*(nn.Linear(32, 32) for _ in range(4))), rank=4)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("frequency" in name or "up" in name)
    assert saved_beside_parameters(model, lambda: model(torch.randn(64, 32))) == [(64, 4)] * 4


@pytest.mark.parametrize("x_learns", [False, True])
def test_gradients_are_those_of_the_eager_maths_once_and_twice(x_learns):
    layer = frozen_layer().double()
    x = torch.randn(2, 5, 9, dtype=torch.float64, requires_grad=x_learns)
    wanted = [t for t in (x, *layer.parameters()) if t.requires_grad]
    found = []
    for y in (layer(x), eagerly(layer, x)):
        once = torch.autograd.grad(y.square().sum(), wanted, create_graph=True)
        twice = torch.autograd.grad(sum(g.square().sum() for g in once), wanted, create_graph=True)
        thrice = torch.autograd.grad(sum(g.square().sum() for g in twice), wanted)
        found.append((*once, *twice, *thrice))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    y = layer(x)  # without a graph of the gradients: the operator's own backward
    plain = torch.autograd.grad(y.square().sum(), wanted)
    for one, other in zip(plain, found[1], strict=False):
        torch.testing.assert_close(one, other)


def test_gradcheck():
    layer = frozen_layer().double()
    tensors = [torch.randn(3, 9, dtype=torch.float64, requires_grad=True), layer.noble.up, layer.noble.down_bias]
    names = ["up", "down_bias"] if layer.noble.down_bias is not None else ["up"]
    tensors = [t for t in tensors if t is not None]

    def run(x, *own):
        return torch.func.functional_call(layer, dict(zip([f"noble.{n}" for n in names], own, strict=True)), (x,))

    assert torch.autograd.gradcheck(run, tensors)
    assert torch.autograd.gradgradcheck(run, tensors)


@pytest.mark.parametrize("used", [[0, 1, 2], [0, 2], [1]])
def test_of_a_group_too(used):
    layers, x = small_layers().double(), torch.randn(5, 9, dtype=torch.float64, requires_grad=True)
    for layer in layers:
        layer.weight.requires_grad_(False)
        layer.noble.down.requires_grad_(False)
    wanted = [x, *(p for p in layers.parameters() if p.requires_grad)]
    found = []
    for y in (LINEAR_GROUP(*group_arguments(layers, x)), eagerly_each(layers, x)):
        loss = sum(y[i].square().sum() for i in used)
        once = torch.autograd.grad(loss, wanted, create_graph=True, allow_unused=True)
        again = sum(g.square().sum() for g in once if g is not None)
        found.append((*once, *torch.autograd.grad(again, wanted, allow_unused=True)))
    for at, (one, other) in enumerate(zip(*found, strict=True)):
        if at < len(wanted):
            assert (one is None) == (other is None)
        if one is not None:  # the second time, a site that is not used may get zeros from the one tensor of all h
            torch.testing.assert_close(one, torch.zeros_like(one) if other is None else other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_gradients_have_the_dtypes_of_their_tensors(dtype):
    layer = frozen_layer().to(dtype)
    x = torch.randn(3, 9, dtype=dtype, requires_grad=True)
    wanted = [x, layer.bias, *(p for p in layer.noble.parameters() if p.requires_grad)]
    for create_graph in (False, True):
        once = torch.autograd.grad(layer(x).sum(), wanted, create_graph=create_graph)
        assert [g.dtype for g in once] == [dtype] * len(wanted)
    sum(g.float().square().sum() for g in once).backward()
    assert x.grad.dtype == dtype


def test_compiled_they_keep_h_alone_as_well():
    layer, x = frozen_layer(), torch.randn(11, 9, requires_grad=True)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    wanted = [x, layer.noble.up]
    kept = saved_beside_parameters(layer, lambda: compiled(x))
    assert (11, 9) not in kept
    assert (11, 4) in kept
    for one, other in zip(
        torch.autograd.grad(compiled(x).square().sum(), wanted),
        torch.autograd.grad(eagerly(layer, x).square().sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_what_stands_for_x_has_its_shape_and_no_memory_of_its_own():
    layer, h = frozen_layer(), torch.zeros(2, 5, 4)
    flat = Operands.of_linear(
        torch.zeros(2, 5, 9), layer.weight, None, layer.noble.down, None, layer.noble.up, []
    ).flat()
    x = frozen.without_x(flat, h, 1, grouped=False)[0]
    assert x.shape == (2, 5, 9)
    assert x.data_ptr() == layer.noble.down.data_ptr()
    assert frozen.is_frozen(flat, 1)
