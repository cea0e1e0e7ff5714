"""Products by tensor descriptors, persistent: any number of programs, any shape that a descriptor takes."""

from dataclasses import replace

import pytest
import torch

import noble_fx
from noble_fx.codegen.generate import generate
from noble_fx.codegen.kernels.backward import linear_backward_input
from noble_fx.codegen.kernels.forward import linear_up_forward
from noble_fx.codegen.plan import Layer, make_plan
from noble_fx.runtime.launch import launch
from tests.codegen.one_layer import near

NAMES = {"linear_up_forward_tma", "linear_backward_input_tma"}


def layer_of(columns, rank=16, inputs=200, dtype=torch.bfloat16):
    return Layer(inputs, columns, rank, "identity-0123", dtype, dtype, bias=True)


def tensors_of(layer, rows):
    """Operands with rows of more than the layer's numbers, as slices of wider tensors have."""
    torch.manual_seed(0)
    draw = lambda *shape: (torch.randn(shape) * 0.3).to(layer.dtype)  # noqa: E731
    tensors = {"x": draw(rows, layer.in_features + 8)[:, : layer.in_features], "dx": draw(rows, layer.in_features)}
    for site, columns in enumerate(layer.out_features):
        own = {"dy": draw(rows, columns + 16)[:, :columns], "t": draw(rows, layer.rank), "dh": draw(rows, layer.rank)}
        own |= {"weight": draw(columns, layer.in_features + 24)[:, : layer.in_features], "bias": draw(columns)}
        own |= {"up": draw(columns, layer.rank), "down": draw(layer.rank, layer.in_features), "y": draw(rows, columns)}
        tensors |= {layer.name(name, site): tensor for name, tensor in own.items()}
    return tensors


@pytest.fixture
def kernels():
    def of(layer):
        plan = make_plan(layer, "interpreter", tma=True)
        assert plan.tma
        return plan, linear_up_forward(plan, tma=True), linear_backward_input(plan, tma=True)

    return of


@pytest.mark.parametrize("programs", [1, 2, None])
@pytest.mark.parametrize(("columns", "rows"), [((136,), 70), ((136, 64, 8), 40), ((64,), 300)])
def test_y_and_dx(kernels, columns, rows, programs):
    layer = layer_of(columns)
    plan, up, back = kernels(layer)
    tensors = tensors_of(layer, rows)
    for kernel in (up, back):
        # The grid is a number of programs alone: any does, as each walks over the tiles that are its turn.
        fewer = replace(kernel, row_tile=0, blocks=programs) if programs else kernel
        launch(plan, fewer, rows, tensors)
    exact = {name: tensor.double() for name, tensor in tensors.items()}
    dx = 0
    for site in range(layer.sites):
        x, weight, bias, t, u, dy, dh, d = (
            exact["x"] if name == "x" else exact[layer.name(name, site)]
            for name in ("x", "weight", "bias", "t", "up", "dy", "dh", "down")
        )
        y = layer.name("y", site)
        near(y, tensors[y], x @ weight.t() + bias + t @ u.t(), layer.dtype)
        dx = dx + dy @ weight + dh @ d
    near("dx", tensors["dx"], dx, layer.dtype)


def test_a_kernel_that_is_persistent_takes_as_many_programs_as_there_are_multiprocessors(kernels):
    _, up, _ = kernels(layer_of((136,)))
    assert up.programs(320) == 10 * 3
    assert up.programs(320, most=4) == 4
    assert up.programs(20, most=132) == 3
    assert replace(up, persistent=False).programs(320, most=4) == 30


@pytest.mark.parametrize(
    ("layer", "described"),
    [
        (layer_of((136,)), True),
        (layer_of((136,), rank=12), False),
        (layer_of((136,), inputs=100), False),
        (layer_of((136, 20)), False),
        (layer_of((136,), dtype=torch.float32), False),
    ],
)
def test_where_there_are_such_kernels(layer, described):
    assert make_plan(layer, tma=True).tma == described
    assert not make_plan(layer).tma


def test_a_plan_has_them_where_it_says_so():
    kernel_set = noble_fx.kernels("cosnet", in_features=256, out_features=(128, 64), rank=16)
    assert kernel_set.kernels.keys() & NAMES == NAMES
    assert not kernel_set.on("sm_80").kernels.keys() & NAMES
    assert generate(kernel_set.plan).keys() >= NAMES
    body = kernel_set.sources["linear_up_forward_tma"]
    assert body.count("x = tl.make_tensor_descriptor(") == 1
