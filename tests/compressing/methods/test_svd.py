"""`svd`: the nearest matrix, both factors alike."""

import pytest
import torch

from noble_fx.compressing.methods.svd import Svd
from noble_fx.compressing.problem import Problem
from tests.compressing.data import matrix


def test_without_data_the_loss_is_the_tail_of_singular_values():
    weight = matrix(6, 9)
    found = Svd().factorise(Problem.without_data(weight))
    for rank in range(7):
        up, down = found.at(rank)
        torch.testing.assert_close(found.losses[rank], (weight - up @ down).square().sum(), rtol=1e-9, atol=1e-9)
    assert found.error(0) == pytest.approx(1.0)


def test_the_factors_share_the_singular_values():
    found = Svd().factorise(Problem.without_data(matrix(6, 9)))
    torch.testing.assert_close(found.left.square().sum(0), found.spectrum)
    torch.testing.assert_close(found.right.square().sum(1), found.spectrum)
