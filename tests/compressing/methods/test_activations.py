"""`activations`: the optimum, and clearly better than the others where channels differ."""

import torch

from noble_fx.compressing.methods.table import METHODS
from noble_fx.compressing.problem import Problem
from tests.compressing.data import problem


def test_on_skewed_inputs_it_is_far_better_than_the_svd():
    given, _ = problem(24, 32, rows=500)
    lost = {name: METHODS[name]().factorise(given).losses[6] for name in ("activations", "diagonal", "svd")}
    assert lost["activations"] < lost["diagonal"] < lost["svd"]
    assert lost["svd"] > 2 * lost["activations"]


def test_outputs_are_all_that_it_asks():
    given, x = problem(5, 9)
    y = x @ given.weight.T
    method = METHODS["activations"]()
    assert not method.needs_inputs
    found = method.factorise(Problem(given.weight, outputs=y.T @ y, total=given.total))
    torch.testing.assert_close(found.losses, method.factorise(given).losses, rtol=1e-9, atol=1e-9)
