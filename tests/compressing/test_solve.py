"""A layer at every rank, from its sums: the error that is told is the error that is."""

import pytest
import torch
from torch.nn import functional as F

from noble_fx.compressing.calibration import Calibration
from noble_fx.compressing.gather import gather
from noble_fx.compressing.methods.table import METHODS
from noble_fx.compressing.order import first_run
from noble_fx.compressing.solve import needed_rows, solve
from tests.compressing.models import batches, exact, inputs_of, places_of, track, with_branches


def solved(model, method, centred=True, needs_inputs=True):
    places, calibration = places_of(model), Calibration(batches())
    order = first_run(model, places, calibration.first())
    sums = gather(model, places, order, calibration, track, needs_inputs)
    return {place.name: (place, solve(place, sums[place.name], METHODS[method](), centred)) for place in places}


def output(place, x, new=None):
    """y of the layer as it is, or at a rank."""
    branch = place.branch
    if new is None:
        y = F.linear(x, place.weight, place.bias)
        return y if branch is None else y + branch(x)
    y = F.linear(F.linear(x, new.down.double()), new.up.double(), new.bias)
    return y if branch is None else y + F.linear(branch.before_up(x), new.branch_up)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("make", [exact, with_branches])
@pytest.mark.parametrize("centred", [True, False])
def test_the_error_is_the_error_of_the_layer(method, make, centred):
    model = make()
    for name, (place, solution) in solved(model, method, centred).items():
        x = inputs_of(model, name, batches())
        y = output(place, x).detach()
        base = y.mean(0) if centred else (0 if place.bias is None else place.bias.detach())
        for rank in (1, 4, 7):
            new = solution.at(place, rank)
            error = (y - output(place, x, new).detach()).norm() / (y - base).norm()
            assert new.error == pytest.approx(float(error), rel=1e-5), (name, rank)
            assert (new.branch_up is None) == (place.branch is None)


@pytest.mark.parametrize("make", [exact, with_branches])
def test_outputs_say_as_much_as_inputs(make):
    model = make()
    by_inputs, by_outputs = (solved(model, "activations", needs_inputs=needs) for needs in (True, False))
    for name, (place, solution) in by_inputs.items():
        one, other = solution.at(place, 5), by_outputs[name][1].at(place, 5)
        assert one.error == pytest.approx(other.error, rel=1e-6)
        torch.testing.assert_close(one.up @ one.down, other.up @ other.down, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(one.bias, other.bias, rtol=1e-5, atol=1e-7)
    assert by_outputs["blocks.0.fc2"][1].of_outputs


@pytest.mark.parametrize("method", ["svd", "welore"])
def test_without_data_bias_and_branch_stay(method):
    (place, *_) = places_of(with_branches(), "fc1")
    new = solve(place, None, METHODS[method](), False).at(place, 4)
    assert new.bias is place.bias
    assert new.branch_up is None
    expected = (place.weight - new.up @ new.down).norm() / place.weight.norm()
    assert new.error == pytest.approx(float(expected))


def test_a_bias_that_was_not_there():
    model = exact()
    place, solution = solved(model, "activations")["blocks.0.k_proj"]
    assert solution.at(place, 3).bias.shape == (16,)
    place, solution = solved(model, "activations", centred=False)["blocks.0.k_proj"]
    assert solution.at(place, 3).bias is None


def test_factors_are_no_larger_than_they_need_be():
    for dtype in (torch.float32, torch.bfloat16):
        (_, solution) = solved(exact().to(dtype), "activations")["blocks.0.fc1"]
        assert solution.factors.left.dtype == torch.float32


def test_needed_rows():
    (place,) = places_of(with_branches(), ["blocks.0.fc1"])
    assert needed_rows(place) == 16 + 4 + 1
