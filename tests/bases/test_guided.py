"""A base beside its W, which fades out."""

import pytest
import torch
from torch.nn import functional as F

from noble_fx.bases.guided import Guided
from noble_fx.bases.kinds import base_of
from noble_fx.bases.low_rank import LowRank
from noble_fx.errors import ConfigError, Refusal


def made(guide=0.5):
    torch.manual_seed(0)
    base, weight = Guided(LowRank(12, 20, 3), guide).double(), torch.randn(20, 12, dtype=torch.float64)
    base.draw()
    base.fill(weight)
    return base, weight


def test_at_first_it_is_the_dense_layer_to_the_last_bit():
    base, weight = made()
    x, b = torch.randn(5, 12, dtype=torch.float64), torch.randn(20, dtype=torch.float64)
    assert torch.equal(base(x, b), F.linear(x, weight, b))


def test_at_last_it_is_its_base_to_the_last_bit():
    base, _ = made()
    base.between_steps(0.5)
    x, b = torch.randn(5, 12, dtype=torch.float64), torch.randn(20, dtype=torch.float64)
    assert torch.equal(base(x, b), base.inner(x, b))


def test_in_between_it_follows_a_cosine():
    base, weight = made()
    alphas = []
    for progress in (0.0, 0.125, 0.25, 0.375, 0.5, 0.9):
        base.between_steps(progress)
        alphas.append(float(base.alpha))
        mixed = alphas[-1] * weight + (1 - alphas[-1]) * base.inner.merged()
        torch.testing.assert_close(base.merged(), mixed, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(alphas, [1.0, 0.8535534, 0.5, 0.1464466, 0.0, 0.0], rtol=1e-6, atol=1e-6)


def test_it_costs_both_and_says_so():
    base, _ = made()
    assert base.flops() == 2 * 20 * 12 + 2 * 3 * 32
    assert base.label == "guided factorized r 3"
    assert base.described() == {**base.inner.described(), "guide": 0.5}


def test_nothing_can_be_cut_while_it_is_guided():
    base, _ = made()
    assert isinstance(base.truncated(2), Refusal)
    assert "guided by its W until 50% of training" in str(base.importances())


@pytest.mark.parametrize("guide", [0.0, 1.5, True, "half"])
def test_a_file_with_a_guide_that_cannot_be_is_refused(guide):
    with pytest.raises(ConfigError, match="is no share of training"):
        base_of({**LowRank(12, 20, 3).described(), "guide": guide}, 12, 20)
