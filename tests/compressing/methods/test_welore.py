"""`welore`: the SVD, with a way of its own to spread ranks."""

import torch

from noble_fx.compressing.methods.svd import Svd
from noble_fx.compressing.methods.welore import Welore
from noble_fx.compressing.problem import Problem
from tests.compressing.data import matrix


def test_it_is_the_svd_with_ranks_by_threshold():
    given = Problem.without_data(matrix(6, 9))
    assert torch.equal(Welore().factorise(given).left, Svd().factorise(given).left)
    assert Welore().allocation == "welore"
    assert not Welore().needs_data
