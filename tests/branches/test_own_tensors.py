"""Own tensors by the names that a forward reads, whatever stands behind them."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, weight_norm

from noble_fx import ConfigError
from noble_fx.branches.own_tensors import own_modules, own_parameters, refill


class LowRank(nn.Module):
    """A parametrization with parameters of its own and no way back."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.ones(3, 1)), nn.Parameter(torch.zeros(1, 3))

    def forward(self, weight):
        return weight + self.a @ self.b


PUT_BEHIND = {
    "nothing": (lambda m: None, 1),
    "weight_norm": (lambda m: parametrizations.weight_norm(m), 2),
    "spectral_norm": (lambda m: parametrizations.spectral_norm(m), 1),
    "a parametrization with parameters": (lambda m: parametrize.register_parametrization(m, "weight", LowRank()), 3),
    "prune": (lambda m: prune.l1_unstructured(m, "weight", 0.5), 1),
    "the older weight_norm": (lambda m: weight_norm(m), 2),
    "the older spectral_norm": (lambda m: nn.utils.spectral_norm(m), 1),
}


@pytest.mark.parametrize("how", PUT_BEHIND)
def test_each_parameter_once_under_the_name_that_is_read(how):
    module, (put, count) = nn.Linear(3, 3), PUT_BEHIND[how]
    put(module)
    found = list(own_parameters(module))
    assert sorted(name for name, _ in found) == ["bias"] + ["weight"] * count
    assert {id(p) for _, p in found} == {id(p) for p in module.parameters()}
    assert list(own_modules(module)) == [module]


def test_a_name_that_only_looks_like_one_stays():
    module = nn.Module()
    module.up_g = nn.Parameter(torch.ones(2))
    assert [name for name, _ in own_parameters(module)] == ["up_g"]


def test_values_are_refilled_in_place_and_behind_a_parametrization():
    module, values = nn.BatchNorm1d(3), torch.arange(3.0)
    for name in ("weight", "running_mean"):
        before = getattr(module, name)
        with torch.no_grad():
            refill(module, name, values)
        assert getattr(module, name) is before
        assert torch.equal(before, values)
    linear = parametrizations.weight_norm(nn.Linear(3, 3))
    for drawn in (torch.eye(3), nn.Parameter(torch.eye(3).flip(0))):  # a fresh branch has parameters
        refill(linear, "weight", drawn)
        torch.testing.assert_close(linear.weight, drawn.detach())


@pytest.mark.parametrize(
    ("how", "message"),
    [("prune", "'weight' is pruned.*prune.remove"), ("a parametrization with parameters", "no right_inverse")],
)
def test_what_cannot_take_values_says_so(how, message):
    module = nn.Linear(3, 3)
    PUT_BEHIND[how][0](module)
    with pytest.raises(ConfigError, match=message):
        refill(module, "weight", torch.eye(3))


def test_a_shape_that_is_another_is_refused():
    with pytest.raises(ConfigError, match=r"has not the shape \[2, 2\]"):
        refill(nn.Linear(3, 3), "weight", torch.eye(2))
