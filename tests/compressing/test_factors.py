"""Ranks that save something, and what each loses."""

import pytest
import torch

from noble_fx.compressing.factors import Factors, allowed_ranks, break_even, losses
from tests.compressing.data import matrix, problem


@pytest.mark.parametrize(("outputs", "inputs"), [(768, 768), (3072, 768), (16, 16), (5, 7), (1, 9), (2, 2)])
def test_break_even_is_the_last_rank_that_saves(outputs, inputs):
    rank = break_even(outputs, inputs)
    assert rank * (outputs + inputs) < outputs * inputs
    assert (rank + 1) * (outputs + inputs) >= outputs * inputs


def test_half_of_a_square_layer_saves_nothing():
    assert break_even(768, 768) == 383
    assert 384 not in allowed_ranks(768, 768, 8)


def test_a_bias_that_comes_anew_counts():
    assert break_even(16, 16) == 7
    assert break_even(16, 16, extra=40) == 6


def test_ranks_are_multiples_where_there_is_one():
    assert list(allowed_ranks(64, 64, 8)) == [8, 16, 24]
    assert list(allowed_ranks(16, 16, 8)) == [1, 2, 3, 4, 5, 6, 7]
    assert list(allowed_ranks(2, 2, 8)) == []


@pytest.mark.parametrize(("outputs", "inputs"), [(6, 9), (9, 6), (7, 7)])
def test_losses_at_every_rank(outputs, inputs):
    given, x = problem(outputs, inputs)
    width = min(outputs, inputs)
    left, right = matrix(outputs, width, seed=5), matrix(width, inputs, seed=6) / width
    expected = [(x @ (given.weight - left[:, :rank] @ right[:rank]).T).square().sum() for rank in range(width + 1)]
    torch.testing.assert_close(losses(given.weight, left, right, given.inputs), torch.stack(expected))


def test_errors_are_roots_of_shares():
    factors = Factors(torch.eye(2), torch.eye(2), torch.tensor([4.0, 1.0, 0.0]), torch.ones(2), 4.0)
    assert [factors.error(rank) for rank in range(3)] == [1.0, 0.5, 0.0]
    nothing = Factors(torch.eye(2), torch.eye(2), torch.zeros(3), torch.ones(2), 0.0)
    assert nothing.error(0) == 0.0
