"""The place of a branch is zero in values and in gradients."""

import torch

from noble_fx.schema import BLOCK_BRANCH


def test_it_adds_nothing():
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    y = x.square() + BLOCK_BRANCH(x, "layers.0")
    assert torch.equal(y, x.square())
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gradient, 2 * x)


def test_opcheck():
    x = torch.randn(3, 4, requires_grad=True)
    torch.library.opcheck(BLOCK_BRANCH, (x, "layers.0"), test_utils=("test_schema", "test_faketensor"))
