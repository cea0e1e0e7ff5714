"""Products in one accumulator, of any shape, stride and number of results."""

import pytest
import torch

from noble_fx.codegen.kernel import shared_operand, site_operand
from noble_fx.codegen.kernels.product import Out, Term, dot, product
from noble_fx.codegen.plan import Layer, Tile, make_plan
from noble_fx.runtime.launch import launch

TILE = Tile(rows=32, columns=64, depth=32, warps=4, stages=1)


def layer_of(*columns: int, dtype: torch.dtype = torch.float32) -> Layer:
    return Layer(40, columns, 12, "identity-0123", dtype, dtype)


@pytest.mark.parametrize("rows", [1, 32, 70])
@pytest.mark.parametrize("columns", [24, 64, 130])
@pytest.mark.parametrize("transposed", [True, False])
def test_a_sum_of_two_products_and_a_bias(rows, columns, transposed):
    layer = layer_of(columns)
    shapes = [(columns, depth) if transposed else (depth, columns) for depth in (40, 12)]
    x, t = shared_operand("x", "fp32", ("rows", 40)), shared_operand("t", "fp32", ("rows", 12))
    rights = [site_operand(layer, 0, name, "fp32", shape) for name, shape in zip(("weight", "up"), shapes, strict=True)]
    bias, y = (site_operand(layer, 0, name, "fp32", (columns,)) for name in ("bias", "y"))
    terms = Term(x, rights[0], 40, transposed, strided=True), Term(t, rights[1], 12, transposed, strided=False)
    plan = make_plan(layer, "interpreter")
    kernel = product(plan, TILE, "sum", "y", (Out(y, columns, terms, bias),))
    # x and weight come with any stride.
    tensors = {
        "x": torch.randn(rows, 50)[:, :40],
        "weight": torch.randn(shapes[0][::-1]).t(),
        "t": torch.randn(rows, 12),
    }
    tensors |= {"up": torch.randn(shapes[1]), "bias": torch.randn(columns), "y": torch.full((rows, columns), torch.nan)}
    launch(plan, kernel, rows, tensors)
    weight, up = (right.t() if transposed else right for right in (tensors["weight"], tensors["up"]))
    truth = tensors["x"].double() @ weight.double() + tensors["t"].double() @ up.double() + tensors["bias"].double()
    torch.testing.assert_close(tensors["y"].double(), truth, rtol=1e-5, atol=1e-5)


def test_several_results_take_the_names_of_one():
    layer = layer_of(48, 16)
    x = shared_operand("x", "fp32", ("rows", 40))
    outs = []
    for site, columns in enumerate(layer.out_features):
        weight = site_operand(layer, site, "weight", "fp32", (columns, 40))
        y = site_operand(layer, site, "y", "fp32", ("rows", columns))
        outs.append(Out(y, columns, (Term(x, weight, 40, transposed=True, strided=True),)))
    kernel = product(make_plan(layer, "interpreter"), TILE, "group", "y", tuple(outs))
    assert kernel.blocks == 2
    for site in (0, 1):
        assert f"weight_ptr = weight_{site}_ptr" in kernel.source
        assert f"weight_stride_1 = weight_{site}_stride_1" in kernel.source
        assert f"y_ptr = y_{site}_ptr" in kernel.source
    assert "x_ptr = " not in kernel.source.replace("x_tile_ptr = ", "")


@pytest.mark.parametrize(
    ("dtype", "backend", "text"),
    [
        (torch.float32, "cuda", 'tl.dot(a, b, acc, input_precision="ieee")'),
        (torch.bfloat16, "cuda", "tl.dot(a, b, acc)"),
        (torch.bfloat16, "interpreter", "tl.dot(a.to(tl.float32), b.to(tl.float32), acc)"),
    ],
)
def test_how_a_dot_is_written(dtype, backend, text):
    assert dot(make_plan(layer_of(16, dtype=dtype), backend), "a", "b", "acc") == text
