"""The interface: what holds for every method that there is."""

import pytest
import torch

from noble_fx.compressing.methods.base import Method
from noble_fx.compressing.methods.table import METHODS
from noble_fx.compressing.problem import Problem
from tests.compressing.data import matrix, problem

SHAPES = [(6, 9), (9, 6), (7, 7), (30, 8), (1, 5)]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_the_loss_is_that_of_the_factors_at_every_rank(name, outputs, inputs):
    given, x = problem(outputs, inputs)
    factors = METHODS[name]().factorise(given)
    width = min(outputs, inputs)
    assert factors.left.shape == (outputs, width)
    assert factors.right.shape == (width, inputs)
    for rank in range(width + 1):
        up, down = factors.at(rank)
        lost = (x @ (given.weight - up @ down).T).square().sum()
        torch.testing.assert_close(factors.losses[rank], lost, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_at_full_rank_it_is_the_matrix(name, outputs, inputs):
    given, _ = problem(outputs, inputs)
    factors = METHODS[name]().factorise(given)
    torch.testing.assert_close(factors.left @ factors.right, given.weight)
    assert (factors.spectrum.diff() <= 1e-12).all()


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
@pytest.mark.parametrize("seed", [0, 1])
def test_no_method_loses_less_than_activations(name, outputs, inputs, seed):
    given, _ = problem(outputs, inputs)
    given = Problem(matrix(outputs, inputs, seed), given.inputs, total=given.total)
    best, other = (METHODS[each]().factorise(given).losses for each in ("activations", name))
    assert (best <= other * (1 + 1e-9) + 1e-9).all()


def test_a_method_says_how_it_factorises():
    with pytest.raises(TypeError, match="factorise"):
        Method()
