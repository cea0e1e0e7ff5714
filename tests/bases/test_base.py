"""What every kind of base answers without saying it."""

import pytest
import torch

from noble_fx.bases.base import Base
from noble_fx.bases.low_rank import LowRank
from noble_fx.errors import ConfigError


def test_counts_are_those_of_its_parameters():
    assert LowRank.parameter_count(12, 20, 3) == 3 * (12 + 20)
    assert LowRank.on_meta(12, 20, 3).flops() == 2 * 3 * (12 + 20)


def test_a_meta_one_has_names_and_shapes_alone():
    base = LowRank.on_meta(12, 20, 3)
    assert {name: tuple(p.shape) for name, p in base.named_parameters()} == {"down": (3, 12), "up": (20, 3)}
    assert all(p.is_meta for p in base.parameters())


def test_a_setting_that_a_kind_does_not_know_is_named():
    with pytest.raises(ConfigError, match="'factorized' have no setting 'density'"):
        LowRank(4, 4, 2, density=0.1)


def test_it_is_described_in_plain_values():
    base = LowRank(12, 20, 3)
    base.error, base.method = 0.25, "svd"
    assert base.described() == {"kind": "factorized", "rank": 3, "error": 0.25, "method": "svd"}
    assert base.dtype is torch.float32
    assert "factorized r 3" in repr(base)


def test_a_kind_must_say_what_it_computes():
    with pytest.raises(NotImplementedError):
        Base(2, 2, 1)(torch.zeros(2))
