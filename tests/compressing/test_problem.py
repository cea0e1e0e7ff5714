"""The optimum of every rank, against brute force."""

import pytest
import torch

from noble_fx.compressing.problem import Problem, best_outputs
from tests.compressing.data import matrix, problem

SHAPES = [(6, 9), (9, 6), (7, 7), (24, 5), (1, 8)]


@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_the_error_is_the_tail_and_no_matrix_of_that_rank_has_less(outputs, inputs):
    """Eckart–Young on the outputs themselves: the singular values of X Wᵀ that are left out."""
    given, x = problem(outputs, inputs)
    found = best_outputs(given)
    y = x @ given.weight.T
    tails = torch.linalg.svdvals(y).square().flip(0).cumsum(0).flip(0)
    for rank in range(min(outputs, inputs) + 1):
        up, down = found.at(rank)
        lost = (y - x @ (up @ down).T).square().sum()
        torch.testing.assert_close(lost, found.losses[rank], rtol=1e-9, atol=1e-9)
        least = tails[rank] if rank < len(tails) else y.new_zeros(())
        torch.testing.assert_close(found.losses[rank], least, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
@pytest.mark.parametrize("rows", [3, 200])
def test_at_full_rank_it_is_the_matrix_whatever_the_rows_say(outputs, inputs, rows):
    given, _ = problem(outputs, inputs, rows)
    found = best_outputs(given)
    torch.testing.assert_close(found.left @ found.right, given.weight)
    torch.testing.assert_close(found.left.T @ found.left, torch.eye(min(outputs, inputs), dtype=torch.float64))


def test_outputs_are_as_good_as_inputs():
    given, x = problem(5, 9)
    y = x @ given.weight.T
    other = best_outputs(Problem(given.weight, outputs=y.T @ y, total=given.total))
    torch.testing.assert_close(other.losses, best_outputs(given).losses, rtol=1e-9, atol=1e-9)


def test_without_data_it_is_the_svd():
    weight = matrix(5, 8)
    found = best_outputs(Problem.without_data(weight))
    torch.testing.assert_close(found.spectrum, torch.linalg.svdvals(weight))
    assert found.error(0) == pytest.approx(1.0)
