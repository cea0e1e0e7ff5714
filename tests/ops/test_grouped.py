"""The grouped product and its derivative: against a loop, in every dtype, differentiated twice, and as one node."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from noble_fx.ops import grouped
from noble_fx.schema import GROUPED_PRODUCT

OUTER = torch.ops.noble_fx.grouped_outer.default
OFFSETS = torch.tensor([2, 2, 6, 9], dtype=torch.int32)  # the second of four gets no row
BOUNDS = [(0, 2), (2, 2), (2, 6), (6, 9)]


def operands(k: int = 8, n: int = 12, dtype: torch.dtype = torch.float64, grad: bool = True) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(9, k, dtype=dtype, requires_grad=grad), torch.randn(4, k, n, dtype=dtype, requires_grad=grad)


def looped(x: Tensor, weight: Tensor) -> Tensor:
    return torch.cat([x[a:b] @ matrix for matrix, (a, b) in zip(weight, BOUNDS, strict=True)])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sizes", [(8, 16), (5, 7)], ids=["aligned", "odd"])
@pytest.mark.parametrize("transposed", [False, True])
def test_each_row_meets_its_experts_matrix(dtype, sizes, transposed):
    x, weight = operands(*sizes, dtype)
    stored = weight.detach().transpose(1, 2).contiguous().requires_grad_() if transposed else weight
    y = GROUPED_PRODUCT(x, stored.transpose(1, 2) if transposed else stored, OFFSETS)
    dy = torch.randn_like(y)
    found = [y, *torch.autograd.grad(y, [x, stored], dy)]
    wide = [t.detach().double().requires_grad_() for t in (x, weight)]
    expected = [looped(*wide), *torch.autograd.grad(looped(*wide), wide, dy.double())]
    if transposed:
        assert found[2].is_contiguous(), "the gradient lies as the parameter does"
        found[2] = found[2].transpose(1, 2)
    loose = {torch.bfloat16: 2e-2, torch.float16: 3e-3, torch.float32: 1e-5}.get(dtype, 1e-12)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=loose, atol=loose * 4)
    assert not found[2][1].any(), "an expert without rows has a gradient of zero"


def test_pytorchs_own_product_runs_where_it_can():
    x, weight = operands(8, 12, torch.float32, grad=False)
    assert grouped._is_native(x, weight)
    assert grouped._is_native(x, weight.transpose(1, 2).contiguous().transpose(1, 2))
    assert not grouped._is_native(x.double(), weight.double())
    assert not grouped._is_native(x[:, 1:7].contiguous(), weight)  # rows of 24 bytes
    assert not grouped._is_native(x, weight.flatten()[1:-7].view(-1, 8, 1).expand(-1, -1, 12))
    assert not grouped._is_native(x[:0], weight)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_no_rows_at_all(dtype):
    x, weight = operands(dtype=dtype)
    none = torch.zeros(4, dtype=torch.int32)
    y = GROUPED_PRODUCT(x[:0], weight, none)
    assert y.shape == (0, 12)
    y.sum().backward()
    assert not weight.grad.any()
    assert OUTER(x[:0], y, none).shape == (4, 8, 12)


def test_fewer_rows_than_experts():
    x, weight = operands(8, 16, torch.float32)
    y = GROUPED_PRODUCT(x[:2], weight, torch.tensor([0, 1, 1, 2], dtype=torch.int32))
    torch.testing.assert_close(y, torch.stack([x[0] @ weight[1], x[1] @ weight[3]]))


def test_derivatives_of_any_order():
    x, weight = operands(3, 2)
    assert torch.autograd.gradcheck(lambda x, w: GROUPED_PRODUCT(x, w, OFFSETS), (x, weight))
    assert torch.autograd.gradgradcheck(lambda x, w: GROUPED_PRODUCT(x, w, OFFSETS), (x, weight))
    y = torch.randn(9, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, y: OUTER(x, y, OFFSETS), (x, y))


@pytest.mark.parametrize("operator", [GROUPED_PRODUCT, OUTER])
def test_it_is_an_operator_in_order(operator):
    x, weight = operands(3, 2)
    second = weight if operator is GROUPED_PRODUCT else torch.randn(9, 2, dtype=torch.float64, requires_grad=True)
    torch.library.opcheck(operator, (x, second, OFFSETS))


def test_only_what_is_asked_for_is_computed():
    x, weight = operands()
    for needed, other in ((x, weight.detach()), (weight, x.detach())):
        pair = (needed, other) if needed is x else (other, needed)
        with FlopCounterMode(display=False) as counter:
            GROUPED_PRODUCT(*pair, OFFSETS).sum().backward()
        assert counter.get_total_flops() == 2 * (2 * 9 * 8 * 12)


def test_autocast_casts_as_it_does_for_a_linear_layer():
    x, weight = operands(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y, layer = GROUPED_PRODUCT(x, weight, OFFSETS), F.linear(x[:2], weight[0].t())
        assert GROUPED_PRODUCT(x.double(), weight.double(), OFFSETS).dtype == torch.float64
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y[:2], layer)
    y.sum().backward()
    assert weight.grad.dtype == torch.float32
