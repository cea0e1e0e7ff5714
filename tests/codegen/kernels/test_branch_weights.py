"""dU, dD and db in one launch, and the layout of their partial sums."""

import pytest
import torch

from noble_fx.codegen.kernels.branch_weights import (
    SPLITS,
    branch_weight_backward,
    branch_weights_width,
    reduce_branch_weights,
)
from noble_fx.codegen.plan import Layer, make_plan
from noble_fx.runtime.launch import launch
from tests.samples import crossed


def layer_of(*columns: int, rank: int = 12, bias: bool = True, dtype: torch.dtype = torch.float32) -> Layer:
    return Layer(40, columns, rank, "identity-0123", dtype, dtype, bias)


@pytest.mark.parametrize("bias", [True, False])
def test_the_width_of_a_row_of_partial_sums(bias):
    layer = layer_of(24, 70, bias=bias)
    assert [branch_weights_width(layer, site) for site in (0, 1)] == [
        columns * 12 + 12 * 40 + bias * columns for columns in (24, 70)
    ]


@pytest.mark.parametrize(
    ("sizes", "columns"), crossed([(200, 40), (12, 1), (12, 300), (64, 40)], [(24,), (64, 70, 130)])
)
def test_gradients_of_narrow_weights(sizes, columns):
    rank, rows = sizes
    layer = layer_of(*columns, rank=rank)
    plan = make_plan(layer, "interpreter")
    x = torch.randn(rows, 50)[:, :40]  # rows of any stride
    tensors = {"x": x}
    shapes = [("dy", "rows", 0), ("t", "rows", rank), ("dh", "rows", rank)]
    for site, width in enumerate(columns):
        tensors |= {layer.name(name, site): torch.randn(rows, size or width) for name, _, size in shapes}
        sums = torch.full((SPLITS, branch_weights_width(layer, site)), torch.nan)
        results = {"d_up": (width, rank), "d_down": (rank, 40), "d_bias": (width,)}
        tensors |= {layer.name(name, site): torch.full(shape, torch.nan) for name, shape in results.items()}
        tensors[layer.name("weight_partials", site)] = sums
    launch(plan, branch_weight_backward(plan), rows, tensors)
    launch(plan, reduce_branch_weights(plan), 1, tensors)
    for site in range(len(columns)):
        dy, t, dh = (tensors[layer.name(name, site)].double() for name in ("dy", "t", "dh"))
        truth = {"d_up": dy.t() @ t, "d_down": dh.t() @ x.double(), "d_bias": dy.sum(0)}
        for name, gradient in truth.items():
            torch.testing.assert_close(tensors[layer.name(name, site)].double(), gradient, rtol=1e-4, atol=1e-4)


def test_dy_is_read_once_for_two_gradients():
    source = branch_weight_backward(make_plan(layer_of(64))).source
    assert source.count("dy_tile = tl.load(") == 1
    assert "bias += tl.sum(dy_tile" in source
