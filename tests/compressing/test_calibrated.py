"""All layers from one run, and what is left over."""

import pytest
import torch
from torch import nn

from noble_fx.compressing.calibrated import NEVER_CALLED, Settings, calibrated
from noble_fx.compressing.calibration import Calibration
from noble_fx.compressing.methods.table import METHODS
from noble_fx.errors import ConfigError
from tests.compressing.models import batches, exact, places_of, track, with_branches


def solved(model, given, method="activations", select="auto", bias=True):
    places, settings = places_of(model, select), Settings(METHODS[method](), method, bias, 8)
    found = calibrated(model, places, None if given is None else Calibration(given), settings, track)
    return found, found.candidates(places, settings)


def test_every_layer_once():
    model = exact().train()
    found, candidates = solved(model, batches())
    assert len(candidates) == 12
    assert found.rows == 4 * 96
    assert found.left == {}
    assert model.training
    assert [each.name for each in candidates] == [place.name for place in places_of(model)]


def test_a_bias_that_comes_anew_is_counted():
    for bias, expected in ((True, 16), (False, 0)):
        candidates = {each.name: each.extra for each in solved(exact(), batches(), bias=bias)[1]}
        assert candidates["blocks.0.k_proj"] == expected
        assert candidates["blocks.0.q_proj"] == 0
    assert all(each.extra == 0 for each in solved(exact(), None, "svd")[1])


class Routed(nn.Module):
    """One layer sees every row, one the first few, one none."""

    def __init__(self):
        super().__init__()
        self.all, self.few, self.none = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x):
        return self.all(x).sum() + self.few(x[:2]).sum()


def test_layers_that_saw_nothing_or_too_little():
    found, candidates = solved(Routed(), [torch.randn(20, 8)], select="all")
    assert [each.name for each in candidates] == ["all"]
    assert found.left == {"none": NEVER_CALLED, "few": "'few' has seen 2 rows and needs at least 9"}


@pytest.mark.parametrize("make", [exact, with_branches])
def test_too_few_for_any(make):
    with pytest.raises(ConfigError, match=r"too few calibration rows: .* has seen 12 rows and needs at least \d+"):
        solved(make(), [batches()[0][:1]])


def test_none_that_is_called():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x):
            return x

    with pytest.raises(ConfigError, match="calls none of the chosen layers"):
        solved(Unused(), [torch.ones(9, 4)], select="all")


def test_batches_may_come_once():
    given = batches()
    (once, _), (often, _) = solved(exact(), iter(given)), solved(exact(), given)
    for name, solution in once.solutions.items():
        torch.testing.assert_close(solution.factors.losses, often.solutions[name].factors.losses)
