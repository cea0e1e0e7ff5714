"""`diagonal`: channels scaled by their size."""

import torch

from noble_fx.compressing.methods.diagonal import Diagonal
from noble_fx.compressing.methods.svd import Svd
from noble_fx.compressing.problem import Problem, best_outputs
from tests.compressing.data import matrix


def test_where_channels_are_independent_it_is_the_optimum():
    sizes = torch.logspace(0, -2, 9, dtype=torch.float64)
    given = Problem(matrix(6, 9), torch.diag(sizes), total=1.0)
    torch.testing.assert_close(Diagonal().factorise(given).losses, best_outputs(given).losses, rtol=1e-9, atol=1e-9)
    assert Svd().factorise(given).losses[3] > best_outputs(given).losses[3] * 1.5


def test_a_channel_that_is_always_zero_makes_no_infinite_row():
    sizes = torch.ones(9, dtype=torch.float64)
    sizes[4] = 0
    found = Diagonal().factorise(Problem(matrix(6, 9), torch.diag(sizes)))
    assert found.right.isfinite().all()
    assert Diagonal().factorise(Problem(matrix(6, 9), torch.zeros(9, 9).double())).right.isfinite().all()
