"""W in blocks: the law of each form written out, its best fill, and sizes that do not fit."""

import itertools

import pytest
import torch

from noble_fx.bases.block_diagonal import BlockDiagonal
from noble_fx.errors import ConfigError


def made(form, in_features=12, out_features=20, rank=8, blocks=2):
    torch.manual_seed(0)
    base = BlockDiagonal(in_features, out_features, rank, form=form, blocks=blocks).double()
    for parameter in base.parameters():
        torch.nn.init.normal_(parameter)
    return base


def permutation(rows, columns):
    """The matrix of P: [rows, columns] channels become [columns, rows]."""
    order = torch.arange(rows * columns).view(rows, columns).t().flatten()
    return torch.eye(rows * columns, dtype=torch.float64)[order]


@pytest.mark.parametrize(("form", "blocks"), itertools.product(["dense", "shuffle"], [2, 4]))
def test_its_weight_is_the_product_of_the_matrices_that_the_law_names(form, blocks):
    base = made(form, 16, 8, 8, blocks) if blocks == 2 else made(form, 16, 32, 16, blocks)
    first = torch.block_diag(*base.down)
    if form == "dense":
        expected = base.up @ first
    else:
        second, g = torch.block_diag(*base.up), blocks
        expected = permutation(g, base.out_features // g) @ second @ permutation(g, base.rank // g) @ first
    torch.testing.assert_close(base.merged(), expected)
    x = torch.randn(3, base.in_features, dtype=torch.float64)
    torch.testing.assert_close(base(x), x @ expected.t())


@pytest.mark.parametrize("form", ["dense", "shuffle"])
def test_filled_with_a_weight_of_its_form_it_is_that_weight(form):
    weight = made(form).merged().detach()
    base = made(form)
    base.fill(weight)
    torch.testing.assert_close(base.merged(), weight, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("form", ["dense", "shuffle"])
def test_no_small_change_of_a_filled_one_comes_nearer(form):
    weight = torch.randn(20, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    base = made(form)
    base.fill(weight)
    error = (base.merged() - weight).square().sum()
    for gradient in torch.autograd.grad(error, list(base.parameters())):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-10)


def test_without_the_shuffle_no_block_would_reach_another():
    base = made("shuffle")
    blocks = base.merged().reshape(10, 2, 2, 6).permute(1, 2, 0, 3)
    assert all(blocks[b, a].abs().sum() > 0 for b in range(2) for a in range(2))
    assert torch.linalg.matrix_rank(blocks[0, 1]) == 8 // 2**2


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"blocks": 5}, "blocks=5 do not divide K = 12; blocks=2, 3, 4, 6, 12 would"),
        ({"blocks": 3, "form": "shuffle", "rank": 9}, "blocks=3 do not divide N = 20; blocks=2, 4 would"),
        ({"rank": 7}, "rank 7 must be a multiple of blocks = 2, such as 6 or 8"),
        ({"rank": 3, "form": "shuffle"}, "rank 3 must be a multiple of blocks² = 4, such as 4"),
        ({"in_features": 13, "out_features": 17}, "nor would any other number|blocks=13 would"),
        ({"blocks": 1}, "blocks=1 of base='block_diagonal' must be an integer ≥ 2"),
        ({"form": "round"}, "form='round' of base='block_diagonal' must be 'dense' or 'shuffle'"),
    ],
)
def test_what_does_not_fit_is_told_with_what_would(settings, reason):
    with pytest.raises(ConfigError, match=reason):
        made(**{"form": "dense"} | settings)
